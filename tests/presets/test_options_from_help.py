"""The options are read from llama-server's own help, and the table that ships is what that gave."""

from __future__ import annotations

from router.presets.options_from_help import options_from_help

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


def test_each_option_becomes_a_line():
    assert list(options_from_help(HELP)) == [
        "-h --help --usage",
        "-c --ctx-size |  | N | LLAMA_ARG_CTX_SIZE",
        "-kvo --kv-offload | -nkvo --no-kv-offload |  | LLAMA_ARG_KV_OFFLOAD",
        "--no-host |  |  | LLAMA_ARG_NO_HOST",
        "-fa --flash-attn |  | [on|off|auto]",
        "-ot --override-tensor |  | <tensor name pattern>=<buffer type>,...",
        "--control-vector-layer-range |  | START END",
        "--mmproj-auto | --no-mmproj --no-mmproj-auto",
        "--spec-type |  | none,draft-simple,draft-eagle3,draft-...",
        "--temp --temperature |  | N",
    ]


def test_a_text_without_options_has_none():
    assert list(options_from_help("-\n- \nusage: x\n")) == []
