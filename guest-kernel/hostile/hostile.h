/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A guest that breaks the rules: takes the place of vbus_pci for the connector, brings a network
 * interface up as a driver would, and attacks from there.
 */
#ifndef VBUS_HOSTILE_H
#define VBUS_HOSTILE_H

#include <linux/pci.h>
#include <linux/prandom.h>

#include <alacrity/vbus_abi.h>

#define HOSTILE_EVENT_SLOTS	64
#define HOSTILE_RING_SLOTS	256
#define HOSTILE_POOL_BYTES	PAGE_SIZE
#define HOSTILE_BUFFER_BYTES	(128U << 10)
#define HOSTILE_RING_BYTES(slots) \
	(VBUS_RING_SLOTS_OFFSET + (slots) * sizeof(struct vbus_ring_slot))

/**
 * struct hostile - the connector in our hands
 * @pdev: its PCI function
 * @registers: BAR VBUS_PCI_REGISTERS_BAR
 * @ports: start of BAR VBUS_PCI_PORTS_BAR
 * @event_rings: one page each
 * @events_seen: slots of the last event queue looked at
 * @rx: receive ring
 * @tx: transmit ring
 * @pool: segments
 * @buffer: for frames and data of calls, larger than what is asked for
 * @handle: of the open interface, 0 for none
 * @id: of the interface
 * @tx_signal: what to write to the doorbell
 */
struct hostile {
	struct pci_dev *pdev;
	void __iomem *registers;
	unsigned long ports;
	struct vbus_ring_header *event_rings[VBUS_PCI_NUM_EVENT_QUEUES];
	u32 events_seen;
	struct vbus_ring_header *rx;
	struct vbus_ring_header *tx;
	struct venet_segment *pool;
	void *buffer;
	u64 handle;
	u32 id;
	u32 tx_signal;
};

/**
 * struct attacker - one thread at work
 * @hostile: the connector
 * @random: from the seed and the thread's number
 * @call: this thread's call
 * @num_actions: what it did
 * @num_refused: calls that the host answered with an error
 */
struct attacker {
	struct hostile *hostile;
	struct rnd_state random;
	struct vbus_pci_call *call;
	u64 num_actions;
	u64 num_refused;
};

static inline struct vbus_ring_slot *hostile_slots(struct vbus_ring_header *ring)
{
	return (void *)ring + VBUS_RING_SLOTS_OFFSET;
}

/* connector.c: what a driver does */
int hostile_call(struct hostile *hostile, struct vbus_pci_call *call, u32 func, void *args,
		 size_t len);
void hostile_reset(struct hostile *hostile);
int hostile_start(struct hostile *hostile, struct vbus_pci_call *call, bool publishes);
int hostile_open(struct hostile *hostile, struct vbus_pci_call *call);
int hostile_link_up(struct hostile *hostile, struct vbus_pci_call *call);
bool hostile_was_dropped(struct hostile *hostile);

/* attacks.c: one step of each kind */
struct attack {
	const char *name;
	/* needs a link, or only a started connector, or nothing */
	enum { NEEDS_NOTHING, NEEDS_START, NEEDS_LINK } needs;
	/* the guest never gives event slots */
	bool starves_events;
	void (*step)(struct attacker *attacker);
};

const struct attack *hostile_attack(const char *name);

#endif /* VBUS_HOSTILE_H */
