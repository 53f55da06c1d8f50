"""The options are read from llama-server's own help."""

from __future__ import annotations

from router.presets.options import Option, options_from_help

HELP = """\
some words that come before

----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context
                                        (env: LLAMA_ARG_CTX_SIZE)
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to offload (default: enabled)
                                        (env: LLAMA_ARG_KV_OFFLOAD)
--no-host                               bypass host buffer
                                        (env: LLAMA_ARG_NO_HOST)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off')
                                        - this line begins like an option but is indented
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        override tensor buffer type
--control-vector-layer-range START END
                                        layer range
--mmproj-auto, --no-mmproj, --no-mmproj-auto
                                        whether to use a projector
--spec-type none,draft-simple,draft-eagle3,draft-mtp,draft-dflash,draft-dspark,ngram-simple
                                        kinds of speculation


----- sampling params -----

--temp, --temperature N                 temperature (default: 0.80)
"""


def test_each_option_is_read_with_its_names_and_its_value():
    assert list(options_from_help(HELP)) == [
        Option(("-h", "--help", "--usage")),
        Option(("-c", "--ctx-size"), (), "N", "LLAMA_ARG_CTX_SIZE"),
        Option(("-kvo", "--kv-offload"), ("-nkvo", "--no-kv-offload"), "", "LLAMA_ARG_KV_OFFLOAD"),
        Option(("--no-host",), (), "", "LLAMA_ARG_NO_HOST"),
        Option(("-fa", "--flash-attn"), (), "[on|off|auto]"),
        Option(("-ot", "--override-tensor"), (), "<tensor name pattern>=<buffer type>,..."),
        Option(("--control-vector-layer-range",), (), "START END"),
        Option(("--mmproj-auto",), ("--no-mmproj", "--no-mmproj-auto")),
        Option(
            ("--spec-type",),
            (),
            "none,draft-simple,draft-eagle3,draft-mtp,draft-dflash,draft-dspark,ngram-simple",
        ),
        Option(("--temp", "--temperature"), (), "N"),
    ]


def test_a_text_without_options_has_none():
    assert list(options_from_help("-\n- \nusage: x\n")) == []
