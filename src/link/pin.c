#include "link/pin.h"
#include "base/log.h"
#include "base/symbols.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#if FERRY_HAVE_HWLOC

#include <hwloc.h>

/* hwloc is loaded for the short time that it takes to ask it, and where it is not installed nothing is pinned. */
typedef struct library {
    void *handle;
    int (*init)(hwloc_topology_t *);
    int (*filter)(hwloc_topology_t, enum hwloc_type_filter_e);
    int (*without)(hwloc_topology_t, unsigned long, const char *);
    int (*load)(hwloc_topology_t);
    void (*destroy)(hwloc_topology_t);
    hwloc_obj_t (*get)(hwloc_topology_t, int, unsigned);
    int (*first)(hwloc_const_bitmap_t);
    int (*next)(hwloc_const_bitmap_t, int);
} library;

static bool load_library(library *lib) {
    const fe_symbol symbols[] = {{"hwloc_topology_init", (void **)&lib->init},
                                 {"hwloc_topology_set_io_types_filter", (void **)&lib->filter},
                                 {"hwloc_topology_set_components", (void **)&lib->without},
                                 {"hwloc_topology_load", (void **)&lib->load},
                                 {"hwloc_topology_destroy", (void **)&lib->destroy},
                                 {"hwloc_get_obj_by_depth", (void **)&lib->get},
                                 {"hwloc_bitmap_first", (void **)&lib->first},
                                 {"hwloc_bitmap_next", (void **)&lib->next}};
    lib->handle = dlopen("libhwloc.so.15", RTLD_NOW | RTLD_LOCAL); /* of hwloc 2.1 and newer */
    if (!lib->handle) return false;
    if (!fe_symbols_find(lib->handle, symbols, sizeof symbols / sizeof *symbols)) return true;
    dlclose(lib->handle);
    return false;
}

static hwloc_obj_t find(const library *lib, hwloc_topology_t topology, const fe_pin_device *d) {
    hwloc_obj_t object;
    for (unsigned i = 0; d->pci && (object = lib->get(topology, HWLOC_TYPE_DEPTH_PCI_DEVICE, i)); i++) {
        const struct hwloc_pcidev_attr_s *pci = &object->attr->pcidev;
        if (pci->domain == d->domain && pci->bus == d->bus && pci->dev == d->device && pci->func == d->function)
            return object;
    }
    for (unsigned i = 0; d->name && (object = lib->get(topology, HWLOC_TYPE_DEPTH_OS_DEVICE, i)); i++)
        if (object->name && strcmp(object->name, d->name) == 0) return object;
    return NULL;
}

/* The set of what the device hangs on: a package, or a part of one; the whole machine says nothing. */
static bool find_near(const library *lib, hwloc_topology_t topology, const fe_pin_device *d, cpu_set_t *near) {
    hwloc_obj_t object = find(lib, topology, d);
    while (object && !object->cpuset) object = object->parent;
    if (!object || !object->parent) return false;
    CPU_ZERO(near);
    for (int cpu = lib->first(object->cpuset); cpu >= 0 && cpu < CPU_SETSIZE; cpu = lib->next(object->cpuset, cpu))
        CPU_SET((size_t)cpu, near);
    return true;
}

/* Parts of hwloc that wake drivers of GPUs and displays, and know nothing of networks. */
static void leave_out(const library *lib, hwloc_topology_t topology) {
    static const char *const names[] = {"cuda", "nvml", "rsmi", "levelzero", "opencl", "gl"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        lib->without(topology, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, names[i]);
}

bool fe_pin_find(const fe_pin_device *device, cpu_set_t *near) {
    library lib;
    hwloc_topology_t topology;
    if (!load_library(&lib)) return false;
    bool found = false;
    if (lib.init(&topology) == 0) {
        leave_out(&lib, topology);
        found = lib.filter(topology, HWLOC_TYPE_FILTER_KEEP_IMPORTANT) == 0 && lib.load(topology) == 0 &&
                find_near(&lib, topology, device, near);
        lib.destroy(topology);
    }
    dlclose(lib.handle);
    return found;
}

#else

bool fe_pin_find(const fe_pin_device *device, cpu_set_t *near) {
    (void)device, (void)near;
    return false;
}

#endif

/* Only a device that is on a bus is near anything; asking hwloc takes tens of milliseconds. */
static bool on_a_bus(const fe_pin_device *d) {
    static const char *const classes[] = {"net", "infiniband"};
    char path[128];
    for (size_t i = 0; !d->pci && d->name && i < sizeof classes / sizeof *classes; i++) {
        snprintf(path, sizeof path, "/sys/class/%s/%.64s/device", classes[i], d->name);
        if (access(path, F_OK) == 0) return true;
    }
    return d->pci;
}

void fe_pin_near(int rank, const fe_pin_device *device) {
    cpu_set_t allowed, near;
    if (!on_a_bus(device) || !fe_pin_find(device, &near) || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    CPU_AND(&near, &near, &allowed);
    int count = CPU_COUNT(&near);
    if (count == 0 || count == CPU_COUNT(&allowed)) return;
    bool moved = sched_setaffinity(0, sizeof near, &near) == 0; /* of a thread: 0 is the caller */
    fe_log(FE_INFO, FE_INIT, "rank %d: the network's thread %s %d processors near %s", rank,
           moved ? "runs on the" : "could not be moved to the", count, device->name ? device->name : "its device");
}
