/* A stand-in for libnvidia-ml.so.1, for tests on machines without a GPU.
 *
 * Reads the file named by NVML_STUB_STATE at every call, so that a test changes the GPUs by rewriting it:
 *     driver 0                      nvmlInit fails (driver not loaded)
 *     gpu INDEX key=value ...       one line per GPU; keys: util used_mib total_mib temp power_mw energy_mj sm sm_max
 *                                   throttle corrected uncorrected lost
 *     xid SEQUENCE INDEX NUMBER     an event, delivered once per SEQUENCE
 * Built with -DOLD_DRIVER it lacks the calls that old drivers lack.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, TIMEOUT = 10,
       GPU_IS_LOST = 15, MAX_GPUS = 16, MAX_EVENTS = 64 };
typedef int Result;
typedef struct Gpu *Device;
typedef unsigned int Uint;
typedef unsigned long long Ulong;

struct Gpu { Ulong util, used, total, temp, power, energy, sm, sm_max, throttle, corrected, uncorrected, lost; };
struct Event { int sequence, gpu; Ulong xid; };
static struct Gpu gpus[MAX_GPUS];
static struct Event events[MAX_EVENTS];
static int gpu_count, event_count, driver, delivered, initialised;
static unsigned registered;

static Ulong value_of(const char *line, const char *key) {
    char pattern[32];
    snprintf(pattern, sizeof pattern, " %s=", key);
    const char *at = strstr(line, pattern);
    return at ? strtoull(at + strlen(pattern), NULL, 0) : 0;
}

static void load(void) { /* into locals first: two threads ask at once, and neither may see a half-read state */
    char line[512];
    struct Gpu seen[MAX_GPUS];
    struct Event heard[MAX_EVENTS];
    int gpu_lines = 0, event_lines = 0, driver_line = 1, index;
    const char *path = getenv("NVML_STUB_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    memset(seen, 0, sizeof seen);
    while (file && fgets(line, sizeof line, file)) {
        struct Event event;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "driver %d", &driver_line) == 1) continue;
        if (sscanf(line, "xid %d %d %llu", &event.sequence, &event.gpu, &event.xid) == 3 && event_lines < MAX_EVENTS)
            heard[event_lines++] = event;
        if (sscanf(line, "gpu %d", &index) == 1 && index >= 0 && index < MAX_GPUS) {
            seen[index] = (struct Gpu){
                value_of(line, "util"), value_of(line, "used_mib"), value_of(line, "total_mib"), value_of(line, "temp"),
                value_of(line, "power_mw"), value_of(line, "energy_mj"), value_of(line, "sm"), value_of(line, "sm_max"),
                value_of(line, "throttle"), value_of(line, "corrected"), value_of(line, "uncorrected"),
                value_of(line, "lost")};
            if (index >= gpu_lines) gpu_lines = index + 1;
        }
    }
    if (file) fclose(file);
    memcpy(gpus, seen, sizeof gpus);
    memcpy(events, heard, event_lines * sizeof *events);
    gpu_count = gpu_lines;
    event_count = event_lines;
    driver = driver_line;
}

static Result check(Device device) {
    load();
    if (!initialised) return UNINITIALIZED;
    if (device < gpus || device >= gpus + gpu_count) return INVALID_ARGUMENT;
    return device->lost ? GPU_IS_LOST : SUCCESS;
}
#define ANSWER(device, assignment) do { Result r = check(device); if (r == SUCCESS) { assignment; } return r; } while (0)

Result nvmlInitWithFlags(Uint flags) {
    (void)flags;
    load();
    if (!driver) return DRIVER_NOT_LOADED;
    initialised++;
    return SUCCESS;
}
Result nvmlShutdown(void) { if (!initialised) return UNINITIALIZED; initialised--; return SUCCESS; }
const char *nvmlErrorString(Result result) { return result == SUCCESS ? "Success" : "stub error"; }
Result nvmlDeviceGetCount_v2(Uint *count) { load(); *count = gpu_count; return initialised ? SUCCESS : UNINITIALIZED; }
Result nvmlDeviceGetHandleByIndex_v2(Uint index, Device *device) {
    load();
    if (index >= (Uint)gpu_count) return INVALID_ARGUMENT;
    *device = &gpus[index];
    return SUCCESS;
}
Result nvmlDeviceGetName(Device d, char *text, Uint size) { ANSWER(d, snprintf(text, size, "NVIDIA Stub 80GB")); }
Result nvmlDeviceGetUUID(Device d, char *text, Uint size) {
    ANSWER(d, snprintf(text, size, "GPU-%08x-0000-0000-0000-000000000000", (Uint)(d - gpus) + 0xa0));
}

typedef struct { Uint gpu, memory; } Utilization;
typedef struct { Ulong total, free, used; } Memory;
Result nvmlDeviceGetUtilizationRates(Device d, Utilization *u) { ANSWER(d, u->gpu = d->util; u->memory = 0); }
Result nvmlDeviceGetMemoryInfo(Device d, Memory *m) {
    ANSWER(d, m->total = d->total << 20; m->used = d->used << 20; m->free = m->total - m->used);
}
Result nvmlDeviceGetTemperature(Device d, Uint sensor, Uint *celsius) { (void)sensor; ANSWER(d, *celsius = d->temp); }
Result nvmlDeviceGetPowerUsage(Device d, Uint *milliwatts) { ANSWER(d, *milliwatts = d->power); }
Result nvmlDeviceGetTotalEnergyConsumption(Device d, Ulong *millijoules) { ANSWER(d, *millijoules = d->energy); }
Result nvmlDeviceGetClockInfo(Device d, Uint clock, Uint *mhz) { (void)clock; ANSWER(d, *mhz = d->sm); }
Result nvmlDeviceGetMaxClockInfo(Device d, Uint clock, Uint *mhz) { (void)clock; ANSWER(d, *mhz = d->sm_max); }
Result nvmlDeviceGetTotalEccErrors(Device d, Uint type, Uint counter, Ulong *errors) {
    (void)counter;
    ANSWER(d, *errors = type ? d->uncorrected : d->corrected);
}
Result nvmlDeviceGetCurrentClocksThrottleReasons(Device d, Ulong *reasons) { ANSWER(d, *reasons = d->throttle); }
#ifndef OLD_DRIVER
Result nvmlDeviceGetCurrentClocksEventReasons(Device d, Ulong *reasons) { ANSWER(d, *reasons = d->throttle); }
Result nvmlDeviceGetRemappedRows(Device d, Uint *correctable, Uint *uncorrectable, Uint *pending, Uint *failure) {
    ANSWER(d, *correctable = 1; *uncorrectable = 2; *pending = 1; *failure = 0);
}
#else
Result nvmlDeviceGetRemappedRows(Device d, Uint *c, Uint *u, Uint *p, Uint *f) {
    (void)d, (void)c, (void)u, (void)p, (void)f;
    return NOT_SUPPORTED;
}
#endif

typedef struct { Device device; Ulong type, data; Uint instance, compute; } EventData;
typedef struct Set *EventSet;
Result nvmlEventSetCreate(EventSet *set) { registered = 0; *set = (EventSet)1; return SUCCESS; }
Result nvmlEventSetFree(EventSet set) { (void)set; return SUCCESS; }
Result nvmlDeviceRegisterEvents(Device d, Ulong types, EventSet set) {
    (void)set;
    if (types != 8) return NOT_SUPPORTED;
    ANSWER(d, registered |= 1u << (d - gpus));
}
Result nvmlEventSetWait_v2(EventSet set, EventData *data, Uint milliseconds) {
    (void)set;
    for (Uint waited = 0;; waited += 10) {
        load();
        for (int i = 0; i < event_count; i++) {
            struct Event event = events[i];
            if (event.sequence <= delivered || !(registered >> event.gpu & 1)) continue;
            delivered = event.sequence;
            *data = (EventData){&gpus[event.gpu], 8, event.xid, 0, 0};
            return SUCCESS;
        }
        if (waited >= milliseconds) return TIMEOUT;
        usleep(10000);
    }
}
