// SPDX-License-Identifier: GPL-2.0
/* One step of each kind of attack. Any number of threads do steps at the same time. */
#include <linux/io.h>
#include <linux/string.h>

#include "hostile.h"

static u32 random32(struct attacker *attacker)
{
	return prandom_u32_state(&attacker->random);
}

/* A number that somebody may have forgotten to check, or any other. */
static u64 nasty(struct attacker *attacker)
{
	static const u64 chosen[] = {
		0, 1, 7, 63, 64, 255, 256, 4095, 4096, 4097, 0xffff, 0x10000, 0x7fffffff,
		0x80000000, 0xfffff000, 0xffffffff, 0x100000000, 0xc0000000, 0xe0000000,
		0xfee00000, 0x7fffffffffffffff, 0x8000000000000000, 0xfffffffffffff000,
		0xffffffffffffffc0, 0xffffffffffffffff,
	};
	u32 pick = random32(attacker) % (2 * ARRAY_SIZE(chosen));
	struct hostile *hostile = attacker->hostile;

	if (pick < ARRAY_SIZE(chosen))
		return chosen[pick];
	/*
	 * Where the host may write, which is up to 64 KiB from here on, has to be ours alone, or
	 * the attack is over before its time.
	 */
	switch (pick % 5) {
	case 0:
		return virt_to_phys(hostile->buffer) + random32(attacker) % 8192;
	case 1:
		return random32(attacker) % 16;
	case 2:
		/* across the end of memory, whatever is written there */
		return virt_to_phys(high_memory - 1) + 1 - random32(attacker) % 4;
	case 3:
		return hostile->handle;
	default:
		return ((u64)random32(attacker) << 32) | random32(attacker);
	}
}

static void count(struct attacker *attacker, int status)
{
	attacker->num_actions++;
	if (status < 0)
		attacker->num_refused++;
}

/* A verb with arguments out of the blue, at times at an address out of the blue. */
static void step_verbs(struct attacker *attacker)
{
	struct hostile *hostile = attacker->hostile;
	u8 args[sizeof(attacker->call->args)];
	size_t i;

	for (i = 0; i < sizeof(args); i += 8) {
		u64 value = nasty(attacker);

		if (random32(attacker) & 1) {
			memcpy(args + i, &value, 8);
		} else {
			u32 other = nasty(attacker);

			memcpy(args + i, &value, 4);
			memcpy(args + i + 4, &other, 4);
		}
	}
	if (random32(attacker) % 8 == 0) {
		writeq(nasty(attacker),
		       hostile->registers + offsetof(struct vbus_pci_registers, call));
		outl(nasty(attacker), hostile->ports + VBUS_PCI_PORT_FAST_CALL);
		attacker->num_actions++;
		return;
	}
	count(attacker, hostile_call(hostile, attacker->call, random32(attacker) % 10, args,
				     sizeof(args)));
}

/* Words of rings, signals and pools become something else, under the eyes of the host. */
static void scribble(struct attacker *attacker, void *memory, size_t len)
{
	u64 *word = memory + random32(attacker) % (len / 8) * 8;

	WRITE_ONCE(*word, random32(attacker) & 1 ? nasty(attacker) : *word + random32(attacker));
	attacker->num_actions++;
}

static void ring_doorbell(struct attacker *attacker)
{
	outl(attacker->hostile->tx_signal, attacker->hostile->ports + VBUS_PCI_PORT_DOORBELL);
}

static void step_rings(struct attacker *attacker)
{
	struct hostile *hostile = attacker->hostile;
	struct vbus_ring_header *ring = random32(attacker) & 1 ? hostile->tx : hostile->rx;

	scribble(attacker, ring, HOSTILE_RING_BYTES(HOSTILE_RING_SLOTS));
	if (random32(attacker) % 16 == 0)
		ring_doorbell(attacker);
}

/* Frames whose turn is right and whose contents are not. */
static void step_segments(struct attacker *attacker)
{
	struct hostile *hostile = attacker->hostile;
	struct vbus_ring_slot *slots = hostile_slots(hostile->tx);
	u32 at = attacker->num_actions % HOSTILE_RING_SLOTS;
	u16 turn = 2 * (attacker->num_actions / HOSTILE_RING_SLOTS) + 1;
	struct venet_frame_meta meta = {
		.csum_start = cpu_to_le16(nasty(attacker)),
		.csum_offset = cpu_to_le16(nasty(attacker)),
		.gso_size = cpu_to_le16(nasty(attacker)),
		.hdr_len = cpu_to_le16(nasty(attacker)),
		.flags = cpu_to_le16(random32(attacker) % 16),
		.gso_type = random32(attacker) % 5,
		.count = cpu_to_le16(random32(attacker) % 40),
	};
	struct venet_segment *segment =
		&hostile->pool[random32(attacker) % (HOSTILE_POOL_BYTES / sizeof(*segment))];

	segment->addr = cpu_to_le64(nasty(attacker));
	segment->len = cpu_to_le32(nasty(attacker));
	memcpy(slots[at].meta, &meta, sizeof(meta));
	slots[at].addr = cpu_to_le64(nasty(attacker));
	slots[at].len = cpu_to_le32(nasty(attacker));
	slots[at].batch = 0;
	smp_store_release(&slots[at].turn, cpu_to_le16(turn));
	attacker->num_actions++;
	if (attacker->num_actions % 32 == 0)
		ring_doorbell(attacker);
}

static void step_doorbells(struct attacker *attacker)
{
	u32 signal = random32(attacker) % 4 ? attacker->hostile->tx_signal : nasty(attacker);

	outl(signal, attacker->hostile->ports + VBUS_PCI_PORT_DOORBELL);
	attacker->num_actions++;
}

/* Resets while other threads are in the middle of verbs. */
static void step_reset(struct attacker *attacker)
{
	if (random32(attacker) % 4 == 0) {
		hostile_reset(attacker->hostile);
		attacker->num_actions++;
		return;
	}
	if (random32(attacker) % 4 == 0) {
		count(attacker, hostile_start(attacker->hostile, attacker->call, true));
		return;
	}
	step_verbs(attacker);
}

/* Opens and shares, and gives nothing back. */
static void step_handles(struct attacker *attacker)
{
	struct hostile *hostile = attacker->hostile;
	struct vbus_pci_open open = {
		.id = cpu_to_le32(random32(attacker) % 4),
		.version = cpu_to_le32(VENET_VERSION),
	};
	struct vbus_pci_shm shm = {
		.addr = cpu_to_le64(virt_to_phys(hostile->tx)),
		.len = cpu_to_le32(HOSTILE_RING_BYTES(HOSTILE_RING_SLOTS)),
		.id = cpu_to_le32(random32(attacker) % 4),
		.cookie = cpu_to_le64(attacker->num_actions),
		.signal_offset = cpu_to_le32(VBUS_RING_SIGNAL_OFFSET),
		.vector = cpu_to_le32(random32(attacker) % VBUS_PCI_NUM_VECTORS),
	};
	int status = hostile_call(hostile, attacker->call, VBUS_PCI_FUNC_OPEN, &open,
				  sizeof(open));

	count(attacker, status);
	shm.handle = status < 0 ? cpu_to_le64(hostile->handle) : open.handle;
	count(attacker, hostile_call(hostile, attacker->call, VBUS_PCI_FUNC_SHM, &shm,
				     sizeof(shm)));
}

/* Opens and closes without a slot for the events that come of it. */
static void step_events(struct attacker *attacker)
{
	struct hostile *hostile = attacker->hostile;
	struct vbus_pci_close close = { .handle = cpu_to_le64(hostile->handle) };

	step_handles(attacker);
	if (random32(attacker) % 8 == 0)
		count(attacker, hostile_call(hostile, attacker->call, VBUS_PCI_FUNC_CLOSE,
					     &close, sizeof(close)));
	if (random32(attacker) % 64 == 0)
		scribble(attacker, hostile->event_rings[random32(attacker) % 4],
			 HOSTILE_RING_BYTES(HOSTILE_EVENT_SLOTS));
}

static const struct attack attacks[] = {
	{ "verbs", NEEDS_START, false, step_verbs },
	{ "rings", NEEDS_LINK, false, step_rings },
	{ "segments", NEEDS_LINK, false, step_segments },
	{ "doorbells", NEEDS_LINK, false, step_doorbells },
	{ "reset", NEEDS_NOTHING, false, step_reset },
	{ "handles", NEEDS_START, false, step_handles },
	{ "events", NEEDS_START, true, step_events },
};

const struct attack *hostile_attack(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(attacks); i++)
		if (!strcmp(attacks[i].name, name))
			return &attacks[i];
	return NULL;
}
