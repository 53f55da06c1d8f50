/* libnvidia-ml.so.1 without a GPU: what the real pynvml calls, answered from the folder that state.py describes.
 *
 * It holds nothing between calls but the handles it gave out, as the driver does: a handle is a UUID, and a device that
 * left the list is lost. Built by build.py with the soname that pynvml asks the loader for.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15, UNKNOWN = 999,
};
enum { MAX_GPUS = 32, MAX_HANDLES = 256, MAX_PROCESSES = 256, TEXT = 96 };

typedef struct {
    char uuid[TEXT], name[TEXT], pci[TEXT], cc[TEXT];
    uint64_t total, reserved, used, gfx;
    int util, temp, err, memerr, procerr, utilerr, temperr, procna, proczero, hang_ms, crash, mig, parent;
} Gpu;

typedef struct {
    char driver[TEXT];
    int init_err, init_hang_ms, lag_ms, hide_pids, old_driver;
    int count;
    Gpu gpus[MAX_GPUS];
} State;

typedef struct { uint32_t pid; uint64_t bytes; } Held;

typedef struct { char uuid[TEXT]; } *Device;
static char handles[MAX_HANDLES][TEXT];
static int handle_count;
static int inits;

/* --- the folder ------------------------------------------------------------------------------------------------ */

static const char *folder(void) {
    const char *path = getenv("LLAMA_ROUTER_STUB_NVML");
    return path ? path : "/nonexistent";
}

static bool text_of(const char *item, const char *key, char *into) {
    size_t length = strlen(key);
    if (strncmp(item, key, length) != 0 || item[length] != '=') return false;
    snprintf(into, TEXT, "%s", item + length + 1);
    return true;
}

static bool number_of(const char *item, const char *key, int *into) {
    char text[TEXT];
    if (!text_of(item, key, text)) return false;
    *into = atoi(text);
    return true;
}

static bool bytes_of(const char *item, const char *key, uint64_t *into) {
    char text[TEXT];
    if (!text_of(item, key, text)) return false;
    *into = strtoull(text, NULL, 10);
    return true;
}

static void read_gpu_item(Gpu *g, const char *i) {
    (void)(text_of(i, "uuid", g->uuid) || text_of(i, "name", g->name) || text_of(i, "pci", g->pci) ||
           text_of(i, "cc", g->cc) || bytes_of(i, "total", &g->total) || bytes_of(i, "reserved", &g->reserved) ||
           bytes_of(i, "used", &g->used) || bytes_of(i, "gfx", &g->gfx) || number_of(i, "util", &g->util) || number_of(i, "temp", &g->temp) ||
           number_of(i, "err", &g->err) || number_of(i, "memerr", &g->memerr) ||
           number_of(i, "procerr", &g->procerr) || number_of(i, "utilerr", &g->utilerr) ||
           number_of(i, "temperr", &g->temperr) || number_of(i, "procna", &g->procna) ||
           number_of(i, "proczero", &g->proczero) || number_of(i, "hang_ms", &g->hang_ms) ||
           number_of(i, "crash", &g->crash) || number_of(i, "mig", &g->mig) || number_of(i, "parent", &g->parent));
}

static void read_global_item(State *s, const char *i) {
    (void)(text_of(i, "driver", s->driver) || number_of(i, "init_err", &s->init_err) ||
           number_of(i, "init_hang_ms", &s->init_hang_ms) || number_of(i, "lag_ms", &s->lag_ms) ||
           number_of(i, "hide_pids", &s->hide_pids) || number_of(i, "old_driver", &s->old_driver));
}

static bool read_state(State *s) {
    char path[4096], line[4096];
    memset(s, 0, sizeof *s);
    snprintf(path, sizeof path, "%s/devices", folder());
    FILE *file = fopen(path, "re");
    if (!file) return false;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *rest = line, *item = strsep(&rest, "\t");
        if (strcmp(item, "gpu") != 0) {
            read_global_item(s, item);
        } else if (s->count < MAX_GPUS) {
            Gpu *g = &s->gpus[s->count++];
            g->parent = -1;
            while ((item = strsep(&rest, "\t"))) read_gpu_item(g, item);
        }
    }
    fclose(file);
    return true;
}

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void sleep_ms(int ms) {
    struct timespec t = {ms / 1000, (ms % 1000) * 1000000L};
    while (ms > 0 && nanosleep(&t, &t) == -1 && errno == EINTR) {}
}

/* Adds what one file holds on `device`; a line "end" ends it, for an older and longer text may lie behind. */
static int read_held(int fd, uint32_t pid, int device, Held *held, int count) {
    char text[4096];
    ssize_t length = pread(fd, text, sizeof text - 1, 0);
    text[length > 0 ? length : 0] = 0;
    char *rest = text, *line;
    while ((line = strsep(&rest, "\n")) && strcmp(line, "end") != 0) {
        int d;
        unsigned long long bytes;
        if (sscanf(line, "%d %llu", &d, &bytes) == 2 && d == device && count < MAX_PROCESSES)
            held[count++] = (Held){pid, bytes};
    }
    return count;
}

/* The owner holds an exclusive lock for life: who can take a shared one has found a file without an owner. */
static int read_living(const State *s, int device, Held *held, int count) {
    char path[4096], dead[4352];
    snprintf(path, sizeof path, "%s/alloc", folder());
    DIR *dir = opendir(path);
    if (!dir) return count;
    for (struct dirent *e; (e = readdir(dir));) {
        if (e->d_name[0] == '.') continue;
        int fd = openat(dirfd(dir), e->d_name, O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        if (flock(fd, LOCK_SH | LOCK_NB) != 0) {
            count = read_held(fd, (uint32_t)atoi(e->d_name), device, held, count);
        } else if (s->lag_ms > 0) {
            snprintf(dead, sizeof dead, "%s/dead/%lld.%s", folder(), now_ms(), e->d_name);
            renameat(dirfd(dir), e->d_name, AT_FDCWD, dead);
        } else {
            unlinkat(dirfd(dir), e->d_name, 0);
        }
        close(fd);
    }
    closedir(dir);
    return count;
}

static int read_dead(const State *s, int device, Held *held, int count) {
    char path[4096];
    snprintf(path, sizeof path, "%s/dead", folder());
    DIR *dir = opendir(path);
    if (!dir) return count;
    for (struct dirent *e; (e = readdir(dir));) {
        if (e->d_name[0] == '.') continue;
        if (now_ms() - atoll(e->d_name) >= s->lag_ms) {
            unlinkat(dirfd(dir), e->d_name, 0);
            continue;
        }
        int fd = openat(dirfd(dir), e->d_name, O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        count = read_held(fd, 0, device, held, count);
        close(fd);
    }
    closedir(dir);
    return count;
}

/* On a card that is cut into MIG instances its own figures are those of all instances. */
static int read_all(const State *s, int device, Held *held, bool living_only) {
    int count = 0;
    for (int i = 0; i < s->count; i++) {
        if (i != device && s->gpus[i].parent != device) continue;
        count = read_living(s, i, held, count);
        if (!living_only) count = read_dead(s, i, held, count);
    }
    return count;
}

/* --- handles --------------------------------------------------------------------------------------------------- */

static int give_handle(const char *uuid, Device *out) {
    for (int i = 0; i < handle_count; i++) {
        if (strcmp(handles[i], uuid) == 0) {
            *out = (Device)handles[i];
            return OK;
        }
    }
    if (handle_count == MAX_HANDLES) return UNKNOWN;
    snprintf(handles[handle_count], TEXT, "%s", uuid);
    *out = (Device)handles[handle_count++];
    return OK;
}

/* The state and the device of a handle, after the device has had its chance to hang, to crash and to fail. */
static int look_up(Device handle, State *s, int *device) {
    if (!inits) return UNINITIALIZED;
    if (!read_state(s)) return UNKNOWN;
    for (*device = 0; *device < s->count; ++*device) {
        Gpu *g = &s->gpus[*device];
        if (strcmp(g->uuid, handle->uuid) != 0) continue;
        sleep_ms(g->hang_ms);
        if (g->crash) *(volatile int *)0 = 0;
        return g->err;
    }
    return GPU_IS_LOST;
}

static int write_text(char *out, unsigned size, const char *text) {
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return OK;
}

/* --- the library ----------------------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    State s;
    if (!read_state(&s)) return 9;
    sleep_ms(s.init_hang_ms);
    if (s.init_err) return s.init_err;
    inits++;
    return OK;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!inits) return UNINITIALIZED;
    inits--;
    return OK;
}

const char *nvmlErrorString(int code) { return code == OK ? "Success" : "Stub error"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    State s;
    return read_state(&s) ? write_text(out, size, s.driver) : UNKNOWN;
}

/* MIG instances have no index of their own: only the other devices are counted. */
static int by_index(const State *s, unsigned index, int parent) {
    for (int i = 0; i < s->count; i++) {
        if (s->gpus[i].parent == parent && index-- == 0) return i;
    }
    return -1;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    State s;
    if (!inits) return UNINITIALIZED;
    if (!read_state(&s)) return UNKNOWN;
    for (*count = 0; by_index(&s, *count, -1) >= 0; ++*count) {}
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *out) {
    State s;
    if (!inits) return UNINITIALIZED;
    if (!read_state(&s)) return UNKNOWN;
    int device = by_index(&s, index, -1);
    if (device < 0) return INVALID_ARGUMENT;
    if (s.gpus[device].err) return s.gpus[device].err;
    return give_handle(s.gpus[device].uuid, out);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device *out) {
    State s;
    if (!inits) return UNINITIALIZED;
    if (!read_state(&s)) return UNKNOWN;
    for (int i = 0; i < s.count; i++) {
        if (strcmp(s.gpus[i].uuid, uuid) == 0) return s.gpus[i].err ? s.gpus[i].err : give_handle(uuid, out);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(Device handle, char *out, unsigned size) {
    State s;
    int device, status = look_up(handle, &s, &device);
    return status ? status : write_text(out, size, s.gpus[device].uuid);
}

int nvmlDeviceGetName(Device handle, char *out, unsigned size) {
    State s;
    int device, status = look_up(handle, &s, &device);
    return status ? status : write_text(out, size, s.gpus[device].name);
}

typedef struct {
    char bus_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} PciInfo;

int nvmlDeviceGetPciInfo_v3(Device handle, PciInfo *out) {
    State s;
    int device, status = look_up(handle, &s, &device);
    if (status) return status;
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "%.31s", s.gpus[device].pci);
    snprintf(out->bus_legacy, sizeof out->bus_legacy, "%.15s", s.gpus[device].pci + 4);
    sscanf(s.gpus[device].pci, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(Device handle, int *major, int *minor) {
    State s;
    int device, status = look_up(handle, &s, &device);
    if (status) return status;
    return sscanf(s.gpus[device].cc, "%d.%d", major, minor) == 2 ? OK : NOT_SUPPORTED;
}

typedef struct { uint64_t total, free, used; } Memory;
typedef struct { unsigned version; uint64_t total, reserved, free, used; } MemoryV2;

static int read_memory(Device handle, MemoryV2 *out, bool is_v2) {
    State s;
    Held held[MAX_PROCESSES];
    int device, status = look_up(handle, &s, &device);
    if (status) return status;
    const Gpu *g = &s.gpus[device];
    if (is_v2 && s.old_driver) return FUNCTION_NOT_FOUND;
    if (g->memerr) return g->memerr;
    uint64_t used = g->used + g->gfx;
    int count = read_all(&s, device, held, false);
    for (int i = 0; i < count; i++) used += held[i].bytes;
    uint64_t usable = g->total - g->reserved;
    out->total = g->total;
    out->reserved = g->reserved;
    out->used = used;
    out->free = used < usable ? usable - used : 0;
    return OK;
}

int nvmlDeviceGetMemoryInfo(Device handle, Memory *out) {
    MemoryV2 memory = {0};
    int status = read_memory(handle, &memory, false);
    if (!status) *out = (Memory){memory.total, memory.free, memory.total - memory.free};
    return status;
}

int nvmlDeviceGetMemoryInfo_v2(Device handle, MemoryV2 *out) {
    if (out->version != (sizeof *out | 2u << 24)) return 25; /* argument version mismatch */
    return read_memory(handle, out, true);
}

typedef struct { unsigned pid; uint64_t bytes; unsigned gpu_instance, compute_instance; } ProcessInfo;

/* The driver lists a process once, however many allocations it has. */
static int once_per_pid(Held *held, int count) {
    int kept = 0;
    for (int i = 0; i < count; i++) {
        int at = 0;
        while (at < kept && held[at].pid != held[i].pid) at++;
        if (at == kept) held[kept++] = held[i];
        else held[at].bytes += held[i].bytes;
    }
    return kept;
}

static int read_processes(Device handle, unsigned *count, ProcessInfo *out, bool is_v3) {
    State s;
    Held held[MAX_PROCESSES];
    int device, status = look_up(handle, &s, &device);
    if (status) return status;
    const Gpu *g = &s.gpus[device];
    if (is_v3 && s.old_driver) return FUNCTION_NOT_FOUND;
    if (g->procerr) return g->procerr;
    unsigned found = s.hide_pids ? 0 : (unsigned)once_per_pid(held, read_all(&s, device, held, true));
    unsigned room = out ? *count : 0;
    *count = found;
    if (found > room) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < found; i++) {
        uint64_t bytes = g->procna ? UINT64_MAX : g->proczero ? 0 : held[i].bytes;
        out[i] = (ProcessInfo){held[i].pid, bytes, UINT32_MAX, UINT32_MAX};
    }
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device handle, unsigned *count, ProcessInfo *out) {
    return read_processes(handle, count, out, true);
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device handle, unsigned *count, ProcessInfo *out) {
    return read_processes(handle, count, out, false);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Device handle, unsigned *count, ProcessInfo *out) {
    State s;
    int device, status = look_up(handle, &s, &device);
    if (status) return status;
    unsigned found = s.gpus[device].gfx > 0, room = out ? *count : 0;
    *count = found;
    if (found > room) return INSUFFICIENT_SIZE;
    if (found) out[0] = (ProcessInfo){1, s.gpus[device].gfx, UINT32_MAX, UINT32_MAX};
    return OK;
}

int nvmlDeviceGetUtilizationRates(Device handle, unsigned out[2]) {
    State s;
    int device, status = look_up(handle, &s, &device);
    if (status) return status;
    if (s.gpus[device].parent >= 0) return NOT_SUPPORTED;
    out[0] = (unsigned)s.gpus[device].util;
    out[1] = 0;
    return s.gpus[device].utilerr;
}

int nvmlDeviceGetTemperature(Device handle, int sensor, unsigned *out) {
    (void)sensor;
    State s;
    int device, status = look_up(handle, &s, &device);
    if (status) return status;
    *out = (unsigned)s.gpus[device].temp;
    return s.gpus[device].temperr;
}

typedef struct { unsigned version; int sensor, temperature; } Temperature;

int nvmlDeviceGetTemperatureV(Device handle, Temperature *out) {
    State s;
    int device, status = look_up(handle, &s, &device);
    if (status) return status;
    if (s.old_driver) return FUNCTION_NOT_FOUND;
    out->temperature = s.gpus[device].temp;
    return s.gpus[device].temperr;
}

/* --- MIG ------------------------------------------------------------------------------------------------------- */

int nvmlDeviceGetMigMode(Device handle, unsigned *current, unsigned *pending) {
    State s;
    int device, status = look_up(handle, &s, &device);
    if (status) return status;
    *current = *pending = (unsigned)s.gpus[device].mig;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(Device handle, unsigned *count) {
    State s;
    int device, status = look_up(handle, &s, &device);
    *count = 7;
    return status;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device handle, unsigned index, Device *out) {
    State s;
    int device, status = look_up(handle, &s, &device);
    if (status) return status;
    int instance = by_index(&s, index, device);
    return instance < 0 ? NOT_FOUND : give_handle(s.gpus[instance].uuid, out);
}
