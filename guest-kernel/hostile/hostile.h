/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A guest that breaks the rules: takes the place of vbus_pci for the connector, brings a network
 * interface up as a driver would, attacks from there, and checks what comes of it.
 *
 * Whatever the host may write to is either memory of ours or none at all: a guest that lets the host
 * write over its own kernel ends before it has attacked anybody.
 */
#ifndef VBUS_HOSTILE_H
#define VBUS_HOSTILE_H

#include <linux/jiffies.h>
#include <linux/pci.h>
#include <linux/prandom.h>

#include <alacrity/vbus_abi.h>

/* How long the host may take; it may be emulated, and busy. */
#define HOSTILE_PATIENCE	(10 * HZ)
#define HOSTILE_EVENT_SLOTS	64
#define HOSTILE_RING_SLOTS	64
/* Receive buffers: fewer than slots, so that one can be added that is none. */
#define HOSTILE_NUM_BUFFERS	8
#define HOSTILE_POOL_BYTES	PAGE_SIZE
/* The largest frame or call from any address in the first half. */
#define HOSTILE_BUFFER_BYTES	(256U << 10)
#define HOSTILE_RING_BYTES(slots) \
	(VBUS_RING_SLOTS_OFFSET + (slots) * sizeof(struct vbus_ring_slot))

/**
 * struct hostile - the connector in our hands
 * @pdev: its PCI function
 * @registers: BAR VBUS_PCI_REGISTERS_BAR
 * @ports: start of BAR VBUS_PCI_PORTS_BAR
 * @random: from the seed
 * @pause: after each case, in µs
 * @call: for all calls
 * @event_rings: one page each
 * @events_seen: slots of each event queue looked at since the last reset: it is good for one lap
 * @rx: receive ring
 * @tx: transmit ring
 * @num_sent: frames since the link came up
 * @pool: segments
 * @buffer: for frames and data of calls
 * @handle: of the open interface
 * @id: of the interface
 * @tx_signal: what to write to the doorbell
 * @num_dropped: DEVICE_DROPPED of our interface since the last reset
 * @num_closed: SHM_CLOSED since the last reset
 * @cases: what was tried, and what it came to
 */
struct hostile {
	struct pci_dev *pdev;
	void __iomem *registers;
	unsigned long ports;
	struct rnd_state random;
	uint pause;
	struct vbus_pci_call *call;
	struct vbus_ring_header *event_rings[VBUS_PCI_NUM_EVENT_QUEUES];
	u32 events_seen[VBUS_PCI_NUM_EVENT_QUEUES];
	struct vbus_ring_header *rx;
	struct vbus_ring_header *tx;
	u32 num_sent;
	struct venet_segment *pool;
	void *buffer;
	u64 handle;
	u32 id;
	u32 tx_signal;
	u32 num_dropped;
	u32 num_closed;
	struct {
		u32 tried;
		u32 cut_off;
		u32 stopped;
		u32 refused;
		u32 harmless;
		u32 failed;
	} cases;
};

static inline struct vbus_ring_slot *hostile_slots(struct vbus_ring_header *ring)
{
	return (void *)ring + VBUS_RING_SLOTS_OFFSET;
}

/* The first address behind the guest's memory. */
static inline u64 hostile_beyond(void)
{
	return virt_to_phys(high_memory - 1) + 1;
}

/* connector.c: what a driver does */
int hostile_call(struct hostile *hostile, u32 func, void *args, size_t len);
int hostile_device_call(struct hostile *hostile, u32 func, u32 len);
void hostile_reset(struct hostile *hostile);
int hostile_negotiate(struct hostile *hostile);
int hostile_add_queue(struct hostile *hostile, u32 idx, u32 num_published);
/* From a reset to the event DEVICE_ADDED. */
int hostile_start(struct hostile *hostile, u32 num_published);
/* Opens the interface, and takes all that it can do. */
int hostile_open(struct hostile *hostile);
int hostile_share(struct hostile *hostile, u32 id, void *memory, u32 len, u32 signal_offset,
		  u32 *signal);
/* Both rings and the pool. */
int hostile_share_all(struct hostile *hostile);
/* From a reset to an interface that is up. */
int hostile_link_up(struct hostile *hostile);
void hostile_look_at_events(struct hostile *hostile);
void hostile_ring(struct hostile *hostile, u32 signal);
/* Publishes a frame; its turn is right unless @turn says otherwise. */
void hostile_send(struct hostile *hostile, const struct vbus_ring_slot *slot, u16 turn);
u16 hostile_turn(const struct hostile *hostile);
/* Waits until the host is done with the last frame. One at a time: of a batch it marks the first. */
bool hostile_was_taken(struct hostile *hostile);
/* A broadcast that the host beyond a switch answers, and a loopback sends back. */
void hostile_say_hello(struct hostile *hostile);

/* verdict.c: what has to come of a case, which @what and @value name in the log */
/* The interface is dropped, all its memory let go, and nothing works but closing it. */
void hostile_expect_cut_off(struct hostile *hostile, const char *what, u64 value);
/* The connector is stopped: all calls are answered with EIO. */
void hostile_expect_stop(struct hostile *hostile, const char *what, u64 value);
/* The interface works as before. */
void hostile_expect_harmless(struct hostile *hostile, const char *what, u64 value);
/* A call was answered with @wanted; any error if that is 0. */
void hostile_expect_refusal(struct hostile *hostile, const char *what, u64 value, int status,
			    int wanted);
/* @count of the cases has one more. */
void hostile_count(struct hostile *hostile, u32 *count);
/* The attack itself did not come off. */
void hostile_fail(struct hostile *hostile, const char *what, u64 value, int status);

/* attacks.c: what shared memory can hold */
void hostile_attack_rings(struct hostile *hostile);
void hostile_attack_segments(struct hostile *hostile);
void hostile_attack_buffers(struct hostile *hostile);
void hostile_attack_signals(struct hostile *hostile);
void hostile_attack_scribble(struct hostile *hostile);
/* attacks_calls.c: calls, doorbells, resets */
void hostile_attack_verbs(struct hostile *hostile);
void hostile_attack_guesses(struct hostile *hostile);
void hostile_attack_events(struct hostile *hostile);
void hostile_attack_handles(struct hostile *hostile);
void hostile_attack_doorbells(struct hostile *hostile);
void hostile_attack_resets(struct hostile *hostile);
void hostile_attack_hoard(struct hostile *hostile);
/* What is not the bus's, see targets.h. attacks_pci.c: configuration space */
void hostile_attack_config(struct hostile *hostile);
void hostile_attack_bars(struct hostile *hostile);
/* attacks_registers.c: what is in the BARs */
void hostile_attack_registers(struct hostile *hostile);
/* attacks_queues.c: virtqueues */
void hostile_attack_queues(struct hostile *hostile);
/* attacks_ports.c */
void hostile_attack_ports(struct hostile *hostile);
/* attacks_crowd.c: all of that, from all processors */
void hostile_attack_crowd(struct hostile *hostile);

#endif /* VBUS_HOSTILE_H */
