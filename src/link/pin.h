/* Where a thread that serves a network device should run: hwloc knows what is near it. */
#ifndef FERRY_LINK_PIN_H
#define FERRY_LINK_PIN_H

#include <sched.h>
#include <stdbool.h>

typedef struct fe_pin_device {
    const char *name; /* of its network interface or RDMA device: "eth0", "mlx5_0" */
    bool pci;         /* its place on the bus is known too: */
    unsigned domain, bus, device, function;
} fe_pin_device;

/* The processors near the device. false: hwloc cannot be had, or knows no such device, or nothing of where it is. */
bool fe_pin_find(const fe_pin_device *device, cpu_set_t *near);
/* Moves the calling thread to them, as far as it may run there (its affinity mask); else it is left alone. */
void fe_pin_near(int rank, const fe_pin_device *device);

#endif
