/* SPDX-License-Identifier: GPL-2.0 */
/* Between the files of vbus_pci.ko. */
#ifndef VBUS_PCI_H
#define VBUS_PCI_H

#include <linux/bitmap.h>
#include <linux/io.h>
#include <linux/kfifo.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include <alacrity/vbus_abi.h>
#include <alacrity/vbus_connector.h>
#include <alacrity/vbus_ring.h>

/* Slots of an event queue. */
#define VBUS_PCI_QUEUE_SLOTS	256
/* Devices that came or went and were not told to the bus yet; then their event queue waits. */
#define VBUS_PCI_MAX_PENDING	1024

struct vbus_pci;

/**
 * struct vbus_pci_queue - an event queue
 * @vp: whose
 * @ring: comes back with events
 * @lock: of the north's end of @ring; held while notify functions run
 * @index: its number, of its vector too if there are enough, and of its doorbell
 * @irq: its interrupt, or 0
 * @is_broken: the host broke the rules of rings
 * @name: of the interrupt
 */
struct vbus_pci_queue {
	struct vbus_pci *vp;
	struct vbus_ring *ring;
	spinlock_t lock;
	u32 index;
	int irq;
	bool is_broken;
	char name[16];
};

/* A device that came, went or was lost: VBUS_PCI_EVENT_DEVICE_*. */
struct vbus_pci_pending {
	u32 event;
	u32 id;
};

/**
 * struct vbus_pci_box - what is in a channel
 * @call: of a device
 * @args: the same, at the arguments
 * @data: of the call, if it fits
 */
struct vbus_pci_box {
	union {
		struct vbus_pci_call call;
		struct {
			__le32 head[2];
			struct vbus_pci_device_call args;
		};
	};
	u8 data[128];
};

/**
 * struct vbus_pci - the function
 * @connector: what the bus sees of it
 * @pdev: what PCI sees of it
 * @registers: BAR 0
 * @ports: number of the first port of BAR 2
 * @num_signal_ports: signals with a port of their own, the first ones
 * @num_resets: of the host, since we have begun
 * @is_ending: no device comes or goes any more
 * @num_channels: channels for fast calls, one for each of the first processors
 * @channels: what is in them
 * @channels_bytes: of memory for that
 * @queues: of events
 * @num_vectors: interrupts
 * @vectors_lock: of @vectors
 * @vectors: which are in use
 * @pending_lock: of @pending and @is_stalled
 * @pending: devices that came or went, for @work
 * @is_stalled: an event queue waits for @pending
 * @workqueue: of @work
 * @work: tells the bus about devices
 */
struct vbus_pci {
	struct vbus_connector connector;
	struct pci_dev *pdev;
	struct vbus_pci_registers __iomem *registers;
	unsigned long ports;
	u32 num_signal_ports;
	u32 num_resets;
	bool is_ending;

	u32 num_channels;
	struct vbus_pci_box *channels;
	size_t channels_bytes;

	struct vbus_pci_queue queues[VBUS_PCI_NUM_EVENT_QUEUES];

	u32 num_vectors;
	struct mutex vectors_lock;
	DECLARE_BITMAP(vectors, VBUS_PCI_NUM_VECTORS);

	spinlock_t pending_lock;
	DECLARE_KFIFO(pending, struct vbus_pci_pending, VBUS_PCI_MAX_PENDING);
	bool is_stalled;
	struct workqueue_struct *workqueue;
	struct work_struct work;
};

static inline struct vbus_pci *to_vbus_pci(struct vbus_connector *connector)
{
	return container_of(connector, struct vbus_pci, connector);
}

/*
 * Rings doorbell @signal. At a port of its own KVM finds it at once, whatever else there is to ring;
 * behind the port for all it is compared with each.
 */
static inline void vbus_pci_ring(struct vbus_pci *vp, u32 signal)
{
	if (signal < vp->num_signal_ports)
		outb(0, vp->ports + VBUS_PCI_PORT_SIGNALS + signal);
	else
		outl(signal, vp->ports + VBUS_PCI_PORT_DOORBELL);
}

/* main.c */
void vbus_pci_reset(struct vbus_pci *vp);

/* call.c: 0 or more, or a negated errno */
int vbus_pci_call(struct vbus_pci *vp, u32 func, void *args, size_t len);
int vbus_pci_fast_call(struct vbus_pci *vp, struct vbus_pci_device_call *args, void *data,
		       size_t len);
int vbus_pci_add_channels(struct vbus_pci *vp);
void vbus_pci_free_channels(struct vbus_pci *vp);

/* events.c */
int vbus_pci_add_queues(struct vbus_pci *vp);
void vbus_pci_free_queues(struct vbus_pci *vp);
void vbus_pci_drain_queues(struct vbus_pci *vp);
void vbus_pci_await_drains(struct vbus_pci *vp);
void vbus_pci_work(struct work_struct *work);

/* verbs.c */
extern const struct vbus_connector_ops vbus_pci_ops;

#endif /* VBUS_PCI_H */
