// SPDX-License-Identifier: GPL-2.0
/* Attacks by virtqueues: descriptors, tables, heads. */
#include <linux/delay.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>

#include "targets.h"

/* Of random chains, for each device. */
#define NUM_ROUNDS	8
#define STEPS_PER_ROUND	16
/* Sectors at the disk's begin where writes begin. */
#define NUM_SECTORS	8
/* How long a device may take to be done with a chain that it may as well ignore, in µs. */
#define CHAIN_PATIENCE_US	20000
#define CHAIN_POLL_US	200

/* Where a descriptor of a case points to. */
enum place {
	HEADER,
	DATA,
	TABLE,
	BEYOND,
	EDGE,
	LAST,
	DEVICE,
};

static u64 place_addr(const struct target *target, enum place place, u32 queue)
{
	switch (place) {
	case HEADER:
		return target_addr(target, TARGET_HEADER);
	case DATA:
		return target_addr(target, TARGET_DATA);
	case TABLE:
		return target_addr(target, TARGET_QUEUE(queue) + TARGET_TABLE);
	case BEYOND:
		return hostile_beyond();
	case EDGE:
		return hostile_beyond() - 1;
	case LAST:
		return U64_MAX - 8;
	case DEVICE:
		return pci_resource_start(target->pdev, 0);
	}
	return 0;
}

#define NEXT	VRING_DESC_F_NEXT
#define FILL	VRING_DESC_F_WRITE
#define TABLES	VRING_DESC_F_INDIRECT

struct bad_desc {
	enum place place;
	u32 len;
	u16 flags;
	u16 next;
};

/* The first three are in the ring, the others in a table. */
struct bad_chain {
	const char *what;
	u16 head;
	u16 num_published;
	struct bad_desc desc[3];
	struct bad_desc table[2];
};

static const struct bad_chain bad_chains[] = {
	{ "loop", 0, 1, { { HEADER, 16, NEXT, 1 }, { DATA, 64, NEXT | FILL, 0 } } },
	{ "loop of one", 0, 1, { { HEADER, 16, NEXT, 0 } } },
	{ "loop of one to write to", 0, 1, { { DATA, 512, NEXT | FILL, 0 } } },
	{ "next one behind the ring", 0, 1, { { HEADER, 16, NEXT, TARGET_QUEUE_SIZE } } },
	{ "next one far behind the ring", 0, 1, { { HEADER, 16, NEXT, 4095 } } },
	{ "head behind the ring", TARGET_QUEUE_SIZE, 1, { { HEADER, 16, 0, 0 } } },
	{ "head far behind the ring", 0xffff, 1, { { HEADER, 16, 0, 0 } } },
	{ "more heads than slots", 0, TARGET_QUEUE_SIZE + 1, { { HEADER, 16, 0, 0 } } },
	{ "half of all heads", 0, 0x8000, { { HEADER, 16, 0, 0 } } },
	{ "one head less", 0, 0xffff, { { HEADER, 16, 0, 0 } } },
	{ "the same head again and again", 0, TARGET_QUEUE_SIZE, { { HEADER, 16, 0, 0 } } },
	{ "no bytes", 0, 1, { { HEADER, 0, 0, 0 } } },
	{ "no bytes to write to", 0, 1, { { DATA, 0, FILL, 0 } } },
	{ "all lengths", 0, 1, { { HEADER, U32_MAX, 0, 0 } } },
	{ "all lengths to write to", 0, 1, { { DATA, U32_MAX, FILL, 0 } } },
	{ "lengths that sum up past 32 bits", 0, 1,
	  { { HEADER, 16, NEXT, 1 }, { BEYOND, U32_MAX, NEXT | FILL, 2 },
	    { BEYOND, U32_MAX, FILL, 0 } } },
	{ "behind the memory", 0, 1, { { BEYOND, 64, 0, 0 } } },
	{ "behind the memory, to write to", 0, 1, { { BEYOND, 64, FILL, 0 } } },
	{ "across the end of memory", 0, 1, { { EDGE, 64, 0, 0 } } },
	{ "across the end of memory, to write to", 0, 1, { { EDGE, 512, FILL, 0 } } },
	{ "across the end of addresses", 0, 1, { { LAST, 64, FILL, 0 } } },
	{ "a device", 0, 1, { { HEADER, 16, NEXT, 1 }, { DEVICE, 512, FILL, 0 } } },
	{ "unknown flags", 0, 1, { { HEADER, 16, 0xfff8, 0 } } },
	{ "table of no bytes", 0, 1, { { TABLE, 0, TABLES, 0 } } },
	{ "table of half a descriptor", 0, 1, { { TABLE, 24, TABLES, 0 } } },
	{ "table of all lengths", 0, 1, { { TABLE, U32_MAX & ~15U, TABLES, 0 } },
	  { { HEADER, 16, NEXT, TARGET_TABLE_SLOTS - 1 } } },
	{ "table behind the memory", 0, 1, { { BEYOND, 64, TABLES, 0 } } },
	{ "table across the end of memory", 0, 1, { { EDGE, 64, TABLES, 0 } } },
	{ "table that is not the end", 0, 1,
	  { { TABLE, 16, TABLES | NEXT, 1 }, { DATA, 64, FILL, 0 } },
	  { { HEADER, 16, 0, 0 } } },
	{ "table to write to", 0, 1, { { TABLE, 16, TABLES | FILL, 0 } },
	  { { DATA, 16, FILL, 0 } } },
	{ "table in a table", 0, 1, { { TABLE, 32, TABLES, 0 } },
	  { { TABLE, 32, TABLES, 0 } } },
	{ "loop in a table", 0, 1, { { TABLE, 32, TABLES, 0 } },
	  { { HEADER, 16, NEXT, 1 }, { DATA, 64, NEXT | FILL, 0 } } },
	{ "next one behind the table", 0, 1, { { TABLE, 32, TABLES, 0 } },
	  { { HEADER, 16, NEXT, 2 } } },
};

static void set_desc(const struct target *target, struct vring_desc *desc,
		     const struct bad_desc *bad, u32 queue)
{
	desc->addr = cpu_to_le64(place_addr(target, bad->place, queue));
	desc->len = cpu_to_le32(bad->len);
	desc->flags = cpu_to_le16(bad->flags);
	desc->next = cpu_to_le16(bad->next);
}

static void set_request(struct target *target, u32 type, u64 sector)
{
	struct virtio_blk_outhdr *header = target->area + TARGET_HEADER;

	if (target->kind == VIRTIO_ID_BLOCK)
		*header = (struct virtio_blk_outhdr){ .type = cpu_to_le32(type),
						      .sector = cpu_to_le64(sector) };
}

static bool is_broken(const struct target *target)
{
	return target_status(target) & TARGET_STATUS_BROKEN;
}

/* Waits until the device has said something: that it needs a reset, or that it is done. */
static void wait_for_answer(struct target *target, u32 queue)
{
	struct vring_used *used = target_queue(target, queue) + TARGET_USED;
	int us;

	for (us = 0; us < CHAIN_PATIENCE_US && !READ_ONCE(used->idx); us += CHAIN_POLL_US) {
		if (is_broken(target))
			break;
		usleep_range(CHAIN_POLL_US, 2 * CHAIN_POLL_US);
	}
}

/* What came of it, and whether the device works after a reset. */
static void judge(struct targets *targets, struct target *target, const char *what, u64 value)
{
	struct hostile *hostile = targets->hostile;
	bool was_broken = is_broken(target);
	int status = target_serve(target);

	target_reset(target);
	if (status)
		hostile_fail(hostile, what, value, status);
	else
		hostile_count(hostile, was_broken ? &hostile->cases.refused :
						    &hostile->cases.harmless);
}

static void try_chain(struct targets *targets, struct target *target,
		      const struct bad_chain *bad)
{
	u32 queue = target_request_queue(target), i;
	struct vring_desc *ring, *table;
	struct vring_avail *avail;
	int status = target_start(target, U64_MAX);

	if (status) {
		hostile_fail(targets->hostile, bad->what, target->kind, status);
		return;
	}
	ring = target_queue(target, queue);
	table = (void *)ring + TARGET_TABLE;
	avail = (void *)ring + TARGET_AVAIL;
	set_request(target, VIRTIO_BLK_T_IN, 0);
	for (i = 0; i < ARRAY_SIZE(bad->desc); i++)
		set_desc(target, &ring[i], &bad->desc[i], queue);
	for (i = 0; i < ARRAY_SIZE(bad->table); i++)
		set_desc(target, &table[i], &bad->table[i], queue);
	for (i = 0; i < TARGET_QUEUE_SIZE; i++)
		avail->ring[i] = cpu_to_le16(bad->head);
	target_publish(target, queue, bad->num_published);
	target_notify(target, queue);
	wait_for_answer(target, queue);
	judge(targets, target, bad->what, target->kind);
}

static void any_desc(const struct target *target, struct rnd_state *random,
		     struct vring_desc *desc, u32 queue, u32 num_slots)
{
	static const u32 lens[] = {
		0, 1, 4, 12, 16, 17, 64, 512, 512, 1024, 4096, TARGET_MAX_BUFFER,
		TARGETS_MAX_RAM, 0x80000000, 0xfffffff0, U32_MAX,
	};
	static const enum place places[] = {
		HEADER, HEADER, DATA, DATA, DATA, TABLE, BEYOND, LAST, DEVICE,
	};
	struct bad_desc bad = {
		.place = places[below(random, ARRAY_SIZE(places))],
		.len = lens[below(random, ARRAY_SIZE(lens))],
		.flags = below(random, 16) ? below(random, 4) : prandom_u32_state(random),
		.next = below(random, 16) ? below(random, num_slots) : below(random, 4096),
	};

	/* Numbers of pages and ranges are not to be made of what rings are. */
	if (bad.place == TABLE)
		bad.flags |= TABLES;
	set_desc(target, desc, &bad, queue);
	if (bad.place == DATA)
		desc->addr = cpu_to_le64(target_addr(target, TARGET_DATA + below(random, 0x4000)));
}

/* A chain from a header to a status, whose parts are mostly as they should be. */
static void likely_chain(const struct target *target, struct rnd_state *random,
			 struct vring_desc *desc, u32 num)
{
	u32 first_to_fill = 1 + below(random, num), i;

	for (i = 0; i < num; i++) {
		struct bad_desc part = {
			.place = i ? DATA : HEADER,
			.len = i ? (below(random, 4) ? 512 : below(random, 2048)) : 16,
			.flags = (i >= first_to_fill ? FILL : 0) | (i + 1 < num ? NEXT : 0),
			.next = i + 1,
		};

		if (i && i + 1 == num)
			part.len = 1;
		set_desc(target, &desc[i], &part, 0);
	}
	desc[num - 1].flags |= cpu_to_le16(below(random, 4) ? FILL : 0);
}

static void any_chains(struct target *target, struct rnd_state *random, u32 queue)
{
	struct vring_desc *ring = target_queue(target, queue);
	struct vring_desc *table = (void *)ring + TARGET_TABLE;
	u32 num = 1 + below(random, 6), i;

	for (i = 0; i < TARGET_QUEUE_SIZE; i++)
		any_desc(target, random, &ring[i], queue, TARGET_QUEUE_SIZE + 1);
	for (i = 0; i < TARGET_TABLE_SLOTS; i++)
		any_desc(target, random, &table[i], queue, TARGET_TABLE_SLOTS);
	switch (below(random, 4)) {
	case 0:
		/* One part is not as it should be. */
		likely_chain(target, random, ring, num);
		any_desc(target, random, &ring[below(random, num)], queue, num);
		break;
	case 1:
		likely_chain(target, random, table, num);
		set_desc(target, &ring[0],
			 &(struct bad_desc){ TABLE, num * sizeof(*table), TABLES, 0 }, queue);
		break;
	case 2:
		likely_chain(target, random, ring, num);
		break;
	}
}

void target_queue_step(struct target *target, struct rnd_state *random)
{
	static const u32 types[] = {
		VIRTIO_BLK_T_IN, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_OUT,
		VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_DISCARD,
		VIRTIO_BLK_T_WRITE_ZEROES, 2, U32_MAX,
	};
	/* Now and then all heads are the same, and right. */
	u32 num_heads = below(random, 2) ? 1 : TARGET_QUEUE_SIZE + 1;
	u32 queue = below(random, TARGET_MAX_QUEUES / 2), num = 1 + below(random, 4), i;
	struct vring_avail *avail;

	if (below(random, 2))
		queue = target_request_queue(target);
	avail = target_queue(target, queue) + TARGET_AVAIL;
	set_request(target, types[below(random, ARRAY_SIZE(types))],
		    below(random, 4) ? below(random, NUM_SECTORS) : U64_MAX >> below(random, 40));
	any_chains(target, random, queue);
	for (i = 0; i < TARGET_QUEUE_SIZE; i++)
		avail->ring[i] = cpu_to_le16(below(random, 4) ? 0 : below(random, num_heads));
	avail->flags = cpu_to_le16(prandom_u32_state(random));
	target_publish(target, queue, below(random, 16) ? num : prandom_u32_state(random));
	target_notify(target, queue);
}

static void try_random_chains(struct targets *targets, struct target *target, int round)
{
	struct rnd_state *random = &targets->hostile->random;
	bool has_begun = false;
	int i;

	for (i = 0; i < STEPS_PER_ROUND; i++) {
		if (!has_begun || is_broken(target))
			has_begun = target_start(target, below(random, 2) ? U64_MAX :
								  TARGET_FEATURES) == 0;
		target_queue_step(target, random);
		/* A reset, now and then, maybe before it is done. */
		if (below(random, 4))
			usleep_range(CHAIN_POLL_US, 2 * CHAIN_POLL_US);
		has_begun &= below(random, 4) != 0;
	}
	judge(targets, target, "chains, round", round);
	target_fill(target, random);
}

void hostile_attack_queues(struct hostile *hostile)
{
	struct targets *targets = targets_find(hostile);
	struct target *target;
	int i, j;

	if (!targets)
		return;
	for (i = 0; i < targets->num; i++) {
		target = &targets->target[i];
		if (!target->kind)
			continue;
		for (j = 0; j < ARRAY_SIZE(bad_chains) && !targets_are_lost(targets); j++)
			try_chain(targets, target, &bad_chains[j]);
		for (j = 0; j < NUM_ROUNDS && !targets_are_lost(targets); j++)
			try_random_chains(targets, target, j);
	}
	targets_check(targets, "queues", 0);
	targets_release(targets);
}
