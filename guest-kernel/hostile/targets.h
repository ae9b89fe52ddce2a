/* SPDX-License-Identifier: GPL-2.0 */
/*
 * All functions of the VM, without drivers: what is attacked by the modes that are not about the bus.
 *
 * Here, too, a device may write to memory of ours or to none. So addresses that it is given are those
 * of its own area, or outside RAM, and what else is in the area has the highest bit of each byte set:
 * taken for an address, a length or the number of a page, it is out of reach. Random interrupts go to
 * a processor that is not there.
 */
#ifndef VBUS_HOSTILE_TARGETS_H
#define VBUS_HOSTILE_TARGETS_H

#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>

#include "hostile.h"

#define TARGETS_MAX		8
#define TARGETS_MAX_FAILED	3
/* Of ECAM of one bus. */
#define TARGETS_ECAM_BYTES	(1U << 20)
/* More RAM than that, and the lengths that shall reach behind it do not. */
#define TARGETS_MAX_RAM		0x7fffffffULL

/* Where things are in the BAR of a virtio function, see devices/src/virtio/transport/pci.rs. */
#define TARGET_COMMON		0x0000
#define TARGET_DEVICE		0x2000
#define TARGET_NOTIFY		0x3000
#define TARGET_BAR_BYTES	0x8000
/* The table of each function is at the begin of a page that has nothing else but pending bits. */
#define TARGET_VECTORS_BYTES	0x1000

#define TARGET_MAX_QUEUES	8
#define TARGET_QUEUE_SIZE	16
/* In a target's area: a page for each queue, what begins requests, a page to give away, and data. */
#define TARGET_QUEUE(idx)	((idx) * 0x1000)
#define TARGET_AVAIL		0x400
#define TARGET_USED		0x800
#define TARGET_TABLE		0xc00
#define TARGET_TABLE_SLOTS	64
#define TARGET_HEADER		0x10000
#define TARGET_SPARE		0x11000
#define TARGET_DATA		0x12000
/* From any address in the first half the longest buffer fits. */
#define TARGET_AREA_BYTES	0x40000
#define TARGET_MAX_BUFFER	0x10000

/* Without it a descriptor of a table would be one of data: numbers of pages, in the worst case. */
#define TARGET_FEATURES		BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC)
#define TARGET_STATUS_GOOD	0xf
#define TARGET_STATUS_BROKEN	0x40

/**
 * struct target - a function without a driver
 * @pdev: the function
 * @kind: type of a virtio device, 0 for the connector of the bus
 * @header: its configuration, as it was
 * @msix: offset of its MSI-X capability
 * @registers: BAR 0
 * @vectors: MSI-X table
 * @num_vectors: entries of it
 * @area: memory of ours that its device may read and write, TARGET_AREA_BYTES
 */
struct target {
	struct pci_dev *pdev;
	u16 kind;
	u32 header[16];
	int msix;
	void __iomem *registers;
	void __iomem *vectors;
	u32 num_vectors;
	void *area;
};

/**
 * struct targets - all functions
 * @hostile: the connector, and what is counted
 * @ecam: configuration space of bus 0
 * @target: the connector's is the last one
 * @num: of them
 */
struct targets {
	struct hostile *hostile;
	void __iomem *ecam;
	struct target target[TARGETS_MAX];
	int num;
};

/* Of a serial port that a driver uses. */
struct serial_state {
	u8 ier;
	u8 lcr;
	u8 mcr;
};

#define TARGETS_NUM_SERIAL	2

/* Enough went wrong: each device that does not come back takes HOSTILE_PATIENCE. */
static inline bool targets_are_lost(const struct targets *targets)
{
	return targets->hostile->cases.failed >= TARGETS_MAX_FAILED;
}

static inline u32 below(struct rnd_state *random, u32 end)
{
	return prandom_u32_state(random) % end;
}

/* targets.c: finds them, and brings them back */
/* NULL if they cannot be attacked, which is counted as a failure. */
struct targets *targets_find(struct hostile *hostile);
void targets_release(struct targets *targets);
/* Puts all BARs back to where they were, and switches MSI-X off. */
void targets_restore(struct targets *targets);
/* After @step steps it may be time for a pause: an emulator does not stand floods of exits. */
void targets_rest(const struct targets *targets, u32 step);
/* Restores all of them, and has each serve a good request. */
void targets_check(struct targets *targets, const char *what, u64 value);

/* target.c: what a driver of virtio does */
/* A write of 1, 2, 4 or 8 bytes. */
void targets_write(void __iomem *place, u64 value, u32 len);
u8 target_status(const struct target *target);
/* From a reset to DRIVER_OK, with those features of the offered ones, and queues that are empty. */
int target_start(struct target *target, u64 features);
void target_reset(struct target *target);
/* Makes @num heads available, whatever they are. */
void target_publish(struct target *target, u32 queue, u16 num);
void target_notify(struct target *target, u32 queue);
/* Fills the area with what is out of reach, but for its header. */
void target_fill(struct target *target, struct rnd_state *random);
void *target_queue(const struct target *target, u32 queue);
u32 target_num_queues(const struct target *target);
/* The queue of requests. */
u32 target_request_queue(const struct target *target);
u64 target_addr(const struct target *target, u32 offset);
/* A request that is right, served in time. */
int target_serve(struct target *target);

/* Random steps. None of them needs the others, so all processors may take them at once. */
/* attacks_pci.c: configuration space; BARs of other functions are taken only if @may_overlap */
void targets_config_step(struct targets *targets, struct rnd_state *random, bool may_overlap);
/* attacks_ports.c: the drivers of the serial ports have to find them as they were */
void targets_save_serial(struct serial_state *serial);
void targets_port_step(struct targets *targets, struct rnd_state *random);
void targets_restore_serial(const struct serial_state *serial);
/* attacks_registers.c: of the connector, too */
void target_register_step(struct target *target, struct rnd_state *random);
/* attacks_queues.c */
void target_queue_step(struct target *target, struct rnd_state *random);

#endif /* VBUS_HOSTILE_TARGETS_H */
