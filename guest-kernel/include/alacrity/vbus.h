/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The virtual bus in a Linux guest: what a device driver uses.
 *
 * A driver binds to the kind of an interface, opens it, and works with two verbs: vbus_call(),
 * synchronous, and shared memory with signals, here as rings. Rules of the ABI: docs/abi.md.
 *
 * Life of a connection: vbus_open(), vbus_shm_share() and vbus_ring_share(), work, vbus_close(),
 * and only then vbus_ring_free() and vbus_shm_free(). When the host takes the device away, remove
 * is called; vbus_call() returns -ENODEV by then and vbus_close() works as always. When the host
 * itself is gone and may come back, lost and returned are.
 */
#ifndef ALACRITY_VBUS_H
#define ALACRITY_VBUS_H

#include <linux/device.h>
#include <linux/module.h>
#include <linux/types.h>

#include <alacrity/vbus_abi.h>

struct vbus_connector;
struct vbus_connection;
struct vbus_share;

/**
 * struct vbus_device - an interface on the guest's bus
 * @dev: in the driver model, under /sys/bus/vbus/devices/vbusID
 * @connector: what it is reached through
 * @id: of the interface, never used again
 * @kind: what it speaks, e.g. "virtual-ethernet"
 * @connection: while it is open
 */
struct vbus_device {
	struct device dev;
	struct vbus_connector *connector;
	u32 id;
	char kind[VBUS_PCI_KIND_BYTES];
	struct vbus_connection *connection;
};

/**
 * struct vbus_driver - a driver of all interfaces of one kind
 * @driver: of the driver model; its name and owner are set by vbus_register_driver()
 * @kind: what it speaks; modalias "vbus:KIND", see MODULE_ALIAS_VBUS()
 * @probe: a new interface, not open yet; may sleep
 * @remove: the interface or the driver goes; may sleep
 * @lost: the host's end is gone, maybe for a while: all verbs but vbus_close() fail with -ENODEV.
 *	Must not wait for the host, so it leaves the connection open. May sleep.
 * @returned: the interface is back: the driver closes what it has open and connects anew. 0 if it
 *	goes on, also if the interface is lost again meanwhile. Else remove and probe follow. May sleep.
 *
 * @lost and @returned are both there or neither is. Without them the driver finds a lost interface
 * removed, and one that is back is new to it.
 */
struct vbus_driver {
	struct device_driver driver;
	const char *kind;
	int (*probe)(struct vbus_device *vdev);
	void (*remove)(struct vbus_device *vdev);
	void (*lost)(struct vbus_device *vdev);
	int (*returned)(struct vbus_device *vdev);
};

#define MODULE_ALIAS_VBUS(kind) MODULE_ALIAS("vbus:" kind)

#define to_vbus_device(device) container_of(device, struct vbus_device, dev)

int __vbus_register_driver(struct vbus_driver *driver, struct module *owner, const char *name);
#define vbus_register_driver(driver) \
	__vbus_register_driver(driver, THIS_MODULE, KBUILD_MODNAME)
void vbus_unregister_driver(struct vbus_driver *driver);

#define module_vbus_driver(driver) \
	module_driver(driver, vbus_register_driver, vbus_unregister_driver)

static inline void *vbus_get_drvdata(struct vbus_device *vdev)
{
	return dev_get_drvdata(&vdev->dev);
}

static inline void vbus_set_drvdata(struct vbus_device *vdev, void *data)
{
	dev_set_drvdata(&vdev->dev, data);
}

/* The verbs. All may sleep. They return 0 or more, or a negated errno. */

/* Connects to the interface, whose driver speaks @version of the ABI of its kind. */
int vbus_open(struct vbus_device *vdev, u32 version);

/*
 * Calls a function of the device with @len bytes of @data (any kernel memory, at most
 * VBUS_PCI_MAX_CALL_BYTES), which it may change.
 */
int vbus_call(struct vbus_device *vdev, u32 func, void *data, u32 len);

/*
 * Ends the connection. When it returns, no notify function runs any more, and the host has let go of
 * all shared memory and of all buffers. If it does not within half a minute: -ETIMEDOUT, and the
 * driver must leak its buffers; shared memory and rings are freed as always and leak by themselves.
 * Nothing happens if it is not open: 0. After probe and remove the bus calls it in any case.
 */
int vbus_close(struct vbus_device *vdev);

/**
 * struct vbus_shm - shared memory without a signal: physically contiguous, zeroed
 * @memory: of the driver
 * @len: bytes
 * @share: of the bus; NULL until it is shared, which it can be once
 */
struct vbus_shm {
	void *memory;
	size_t len;
	struct vbus_share *share;
};

int vbus_shm_alloc(struct vbus_shm *shm, size_t len);
int vbus_shm_share(struct vbus_device *vdev, struct vbus_shm *shm, u32 id);
void vbus_shm_free(struct vbus_shm *shm);

/* Rings. The functions of the data path are in alacrity/vbus_ring.h. */
struct vbus_ring;

/*
 * Woken by the host: look at the ring. Runs in hard interrupt context, never twice at a time for
 * one ring, maybe for nothing.
 */
typedef void (*vbus_ring_notify)(struct vbus_ring *ring, void *context);

/*
 * Makes a ring of @num_slots (a power of two up to VBUS_RING_MAX_SLOTS), not shared yet, whose
 * notifications are disabled; or an ERR_PTR(). @name, which is copied, is of its interrupt in
 * /proc/interrupts. A ring can be published to before it is shared.
 */
struct vbus_ring *vbus_ring_alloc(u32 num_slots, const char *name, vbus_ring_notify notify,
				  void *context);

/*
 * Shares it as @id with @priority (0, the lowest, to 7); takes an interrupt vector if one is left.
 * Once for each ring: what comes after vbus_close() is a new one.
 */
int vbus_ring_share(struct vbus_device *vdev, struct vbus_ring *ring, u32 id, u32 priority);

/* Frees it; never before vbus_close(). Nothing happens for NULL or an ERR_PTR(). */
void vbus_ring_free(struct vbus_ring *ring);

#endif /* ALACRITY_VBUS_H */
