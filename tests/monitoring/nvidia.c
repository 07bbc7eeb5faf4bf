/* A driver with two GPUs, as far as the engine asks for it: libcuda.so.1 and libnvidia-ml.so.1 in one. */

#include <stdlib.h>
#include <string.h>

typedef struct { unsigned char bytes[16]; } Uuid;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Utilization;

enum { OK = 0, NOT_FOUND = 6 };

static const char *const uuids[] = {
    "GPU-00000000-0000-0000-0000-000000000000",
    "GPU-01010101-0101-0101-0101-010101010101",
};
static const Memory memories[] = {{80ull << 30, 80ull << 30, 0}, {80ull << 30, 60ull << 30, 20ull << 30}};

/* CUDA: device 0 is the first that CUDA_VISIBLE_DEVICES names. */

int cuInit(unsigned int flags) { (void)flags; return OK; }

int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }

int cuDeviceGetUuid_v2(Uuid *uuid, int device)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    memset(uuid->bytes, device + (visible ? atoi(visible) : 0), sizeof uuid->bytes);
    return OK;
}

/* NVML: a handle is the address of a number. */

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return OK; }

int nvmlDeviceGetHandleByUUID(const char *uuid, const int **handle)
{
    static const int numbers[] = {0, 1};
    for (int n = 0; n < 2; n++)
        if (!strcmp(uuid, uuids[n])) {
            *handle = &numbers[n];
            return OK;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetMemoryInfo(const int *handle, Memory *memory) { *memory = memories[*handle]; return OK; }

int nvmlDeviceGetUtilizationRates(const int *handle, Utilization *rates)
{
    rates->gpu = 50 + *handle;
    rates->memory = 10;
    return OK;
}

int nvmlDeviceGetTemperature(const int *handle, int sensor, unsigned int *celsius)
{
    *celsius = sensor ? 0 : 60 + *handle;
    return OK;
}

int nvmlDeviceGetPowerUsage(const int *handle, unsigned int *milliwatts) { *milliwatts = 300000 + *handle; return OK; }
