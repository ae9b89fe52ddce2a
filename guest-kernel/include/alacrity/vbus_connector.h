/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Between vbus.ko and the connectors that bring its devices. Not for drivers of devices: they use
 * alacrity/vbus.h.
 *
 * Life of a connector: vbus_connector_register(); vbus_connector_add(), _lose() and _drop() for each
 * device that comes and goes, one at a time; vbus_connector_unregister(), during which all drivers close
 * what they have open. vbus_connector_gone() says that the host has let go of everything, at once.
 */
#ifndef ALACRITY_VBUS_CONNECTOR_H
#define ALACRITY_VBUS_CONNECTOR_H

#include <linux/completion.h>
#include <linux/device.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/types.h>
#include <linux/xarray.h>

#include <alacrity/vbus.h>

struct vbus_connector;

/**
 * struct vbus_share - memory that a connection shares
 * @connector: what it is shared through
 * @cookie: its number in events
 * @addr: guest-physical address
 * @len: bytes
 * @id: which one: defined by the device class
 * @priority: 0, the lowest, to 7
 * @signal_offset: byte offset of the signal pair, or VBUS_PCI_NO_SIGNAL
 * @ring: what is in it, or NULL
 * @name: of its interrupt
 * @signal: set by the connector: the number of its doorbell, or VBUS_PCI_NO_SIGNAL
 * @irq: the connector's: its own interrupt, or 0
 * @vector: the connector's: number of that
 * @closed: when the host has let go of it
 * @node: in the connection
 * @rcu: frees it
 */
struct vbus_share {
	struct vbus_connector *connector;
	u32 cookie;
	phys_addr_t addr;
	u32 len;
	u32 id;
	u32 priority;
	u32 signal_offset;
	struct vbus_ring *ring;
	const char *name;
	u32 signal;
	int irq;
	u32 vector;
	struct completion closed;
	struct list_head node;
	struct rcu_head rcu;
};

/**
 * struct vbus_connector_ops - what a connector does for the bus
 * @open: connects to interface @id; sets *@handle
 * @call: calls function @func of the device with @data, which is any kernel memory
 * @shm: shares memory; sets @share->signal. Events of its cookie may come before it returns
 * @unshare: the host has let go of @share, or never got it: no notification runs after this
 * @close: ends the connection; the host says later, for each share, that it has let go of it
 * @is_alive: false: the host has let go of everything meanwhile
 * @doorbell: wakes the host's end of the share that is @context
 *
 * All but @doorbell may sleep. They return 0 or more, or a negated errno.
 */
struct vbus_connector_ops {
	int (*open)(struct vbus_connector *connector, u32 id, u32 version, u64 *handle);
	int (*call)(struct vbus_connector *connector, u64 handle, u32 func, void *data, u32 len);
	int (*shm)(struct vbus_connector *connector, u64 handle, struct vbus_share *share);
	void (*unshare)(struct vbus_connector *connector, struct vbus_share *share);
	int (*close)(struct vbus_connector *connector, u64 handle);
	bool (*is_alive)(struct vbus_connector *connector);
	void (*doorbell)(void *context);
};

/**
 * struct vbus_connector - brings devices to the bus
 * @parent: of the devices, in the driver model
 * @ops: of the connector
 * @shares: by cookie
 * @next_cookie: the last one to be used again
 * @lock: of @devices
 * @devices: that are there
 * @is_gone: nothing can be reached any more
 */
struct vbus_connector {
	struct device *parent;
	const struct vbus_connector_ops *ops;
	/* private: of vbus.ko */
	struct xarray shares;
	u32 next_cookie;
	struct mutex lock;
	struct list_head devices;
	int nr;
	bool is_gone;
};

/* Begins; @parent and @ops are set. 0, or a negative errno. */
int vbus_connector_register(struct vbus_connector *connector);
/* Takes all its devices off the bus. Nothing may be added meanwhile or afterwards. */
void vbus_connector_unregister(struct vbus_connector *connector);
/* The host has let go of everything, and verbs fail with -ENODEV from now on. Does not sleep. */
void vbus_connector_gone(struct vbus_connector *connector);

/* An interface came, or one that was lost came back. May sleep, and probes drivers. */
int vbus_connector_add(struct vbus_connector *connector, u32 id, const char *kind);
/* The host's end of it is gone, maybe for a while. May sleep. Nothing happens if it is not there. */
void vbus_connector_lose(struct vbus_connector *connector, u32 id);
/* It left. May sleep. Nothing happens if it is not there. */
void vbus_connector_drop(struct vbus_connector *connector, u32 id);

/* Events of shared memory, from any context. A cookie that is unknown is ignored. */
void vbus_connector_signal(struct vbus_connector *connector, u64 cookie);
void vbus_connector_shm_closed(struct vbus_connector *connector, u64 cookie);

/* A ring was woken. In hard interrupt context, one at a time for each ring. */
void vbus_ring_notify_now(struct vbus_ring *ring);
/* For the rings of a connector itself, which are not shared by vbus_ring_share(). */
phys_addr_t vbus_ring_addr(const struct vbus_ring *ring);
u32 vbus_ring_bytes(const struct vbus_ring *ring);

#endif /* ALACRITY_VBUS_CONNECTOR_H */
