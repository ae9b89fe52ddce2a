// SPDX-License-Identifier: GPL-2.0
/* Attacks by what is in shared memory: rings, lists of segments, buffers, signals. */
#include <linux/delay.h>

#include "hostile.h"

/* Times that random values are written over a working interface. */
#define NUM_SCRIBBLES	6
/* Words written each time. */
#define NUM_WORDS	64

static void link_up_for(struct hostile *hostile, const char *what, u64 value,
			void (*attack)(struct hostile *hostile, const char *what, u64 value))
{
	int status = hostile_link_up(hostile);

	if (status < 0)
		hostile_fail(hostile, what, value, status);
	else
		attack(hostile, what, value);
}

static void bad_tx_turn(struct hostile *hostile, const char *what, u64 turn)
{
	const struct vbus_ring_slot empty = {};

	hostile_send(hostile, &empty, turn);
	hostile_expect_cut_off(hostile, what, turn);
}

static void bad_later_tx_turn(struct hostile *hostile, const char *what, u64 turn)
{
	hostile_say_hello(hostile);
	if (!hostile_was_taken(hostile))
		hostile_fail(hostile, what, turn, -ETIME);
	bad_tx_turn(hostile, what, turn);
}

static void bad_rx_turn(struct hostile *hostile, const char *what, u64 turn)
{
	struct vbus_ring_slot *slots = hostile_slots(hostile->rx);

	WRITE_ONCE(slots[HOSTILE_NUM_BUFFERS].turn, cpu_to_le16(turn));
	/* It takes all there is. What it answers depends on who is first: it, or the cut-off. */
	hostile_device_call(hostile, VENET_FUNC_FLUSH_RX, 0);
	hostile_expect_cut_off(hostile, what, turn);
}

void hostile_attack_rings(struct hostile *hostile)
{
	/* 1 is right; 0 and 0xffff say that the slot is still ours. */
	static const u16 turns[] = { 2, 3, 0x7fff, 0x8000, 0xfffe };
	int i;

	for (i = 0; i < ARRAY_SIZE(turns); i++) {
		link_up_for(hostile, "transmit turn", turns[i], bad_tx_turn);
		link_up_for(hostile, "later transmit turn", turns[i], bad_later_tx_turn);
		link_up_for(hostile, "receive turn", turns[i], bad_rx_turn);
	}
}

/* Frames whose turn is right and whose contents are not. The numbers are in our own memory. */
struct bad_frame {
	const char *what;
	u64 addr;
	u32 len;
	struct venet_frame_meta meta;
	bool breaks_rules;
};

static void send_bad(struct hostile *hostile, const struct bad_frame *frame)
{
	struct vbus_ring_slot slot = {
		.addr = cpu_to_le64(frame->addr),
		.len = cpu_to_le32(frame->len),
	};

	memcpy(slot.meta, &frame->meta, sizeof(slot.meta));
	hostile_send(hostile, &slot, hostile_turn(hostile));
	if (frame->breaks_rules)
		hostile_expect_cut_off(hostile, frame->what, frame->addr);
	else
		hostile_expect_harmless(hostile, frame->what, frame->addr);
}

static void set_segment(struct hostile *hostile, u32 idx, u64 addr, u32 len, u32 reserved)
{
	hostile->pool[idx] = (struct venet_segment){
		.addr = cpu_to_le64(addr),
		.len = cpu_to_le32(len),
		.reserved = cpu_to_le32(reserved),
	};
}

#define SG(num)	{ .flags = cpu_to_le16(VENET_FRAME_FLAG_SG), .count = cpu_to_le16(num) }

void hostile_attack_segments(struct hostile *hostile)
{
	const u64 good = virt_to_phys(hostile->buffer), beyond = hostile_beyond();
	const u64 slot_bytes = sizeof(struct venet_segment);
	const struct bad_frame frames[] = {
		{ "frame behind the memory", beyond, 60, {}, true },
		{ "frame across the end of memory", beyond - 1, 60, {}, true },
		{ "frame across the end of addresses", U64_MAX - 30, 60, {}, true },
		{ "frame in a hole", 0xfee00000, 60, {}, true },
		{ "more segments than there may be", 0, 60, SG(33), true },
		{ "very many segments", 0, 60, SG(0xffff), true },
		{ "list across the end of the pool", HOSTILE_POOL_BYTES - slot_bytes, 60, SG(2), true },
		{ "list behind the pool", HOSTILE_POOL_BYTES, 60, SG(1), true },
		{ "list nowhere", U64_MAX, 60, SG(1), true },
		{ "list that sums up to something else", 0, 61, SG(1), true },
		{ "segment behind the memory", slot_bytes, 60, SG(1), true },
		{ "segment of no bytes", 2 * slot_bytes, 0, SG(1), true },
		{ "segment with reserved bits", 3 * slot_bytes, 60, SG(1), true },
		{ "segments that sum up past 32 bits", 4 * slot_bytes, 60, SG(2), true },
		{ "no bytes", good, 0, {}, false },
		{ "too few bytes", good, 13, {}, false },
		{ "too many bytes", good, 9000, {}, false },
		{ "unknown flags", good, 60, { .flags = cpu_to_le16(0xff00) }, false },
		{ "unknown segmentation", good, 60, { .gso_type = 4 }, false },
		{ "segments of no bytes", good, 60,
		  { .gso_type = VENET_GSO_TYPE_TCP4, .flags = cpu_to_le16(1) }, false },
		{ "checksum behind the frame", good, 60,
		  { .flags = cpu_to_le16(1), .csum_start = cpu_to_le16(0xffff),
		    .csum_offset = cpu_to_le16(0xffff) }, false },
		{ "reserved bytes", good, 60, { .reserved0 = 1 }, false },
	};
	bool is_up = false;
	int i, status;

	for (i = 0; i < ARRAY_SIZE(frames); i++) {
		status = is_up ? 0 : hostile_link_up(hostile);
		if (status < 0) {
			hostile_fail(hostile, frames[i].what, 0, status);
			continue;
		}
		set_segment(hostile, 0, good, 60, 0);
		set_segment(hostile, 1, beyond - 30, 60, 0);
		set_segment(hostile, 2, good, 0, 0);
		set_segment(hostile, 3, good, 60, 1);
		set_segment(hostile, 4, good, U32_MAX, 0);
		set_segment(hostile, 5, good, 61, 0);
		send_bad(hostile, &frames[i]);
		is_up = !frames[i].breaks_rules;
	}
}

static void bad_buffer(struct hostile *hostile, const char *what, u64 addr)
{
	struct vbus_ring_slot *slots = hostile_slots(hostile->rx);
	int i;

	/* Nobody has looked yet: the first frame to come is the answer to ours. */
	for (i = 0; i < HOSTILE_NUM_BUFFERS; i++)
		slots[i].addr = cpu_to_le64(addr);
	hostile_say_hello(hostile);
	hostile_expect_cut_off(hostile, what, addr);
}

static void bad_buffer_len(struct hostile *hostile, const char *what, u64 len)
{
	struct vbus_ring_slot *slots = hostile_slots(hostile->rx);
	int i;

	for (i = 0; i < HOSTILE_NUM_BUFFERS; i++)
		slots[i].len = cpu_to_le32(len);
	hostile_say_hello(hostile);
	hostile_expect_cut_off(hostile, what, len);
}

void hostile_attack_buffers(struct hostile *hostile)
{
	const u64 addrs[] = {
		hostile_beyond(), hostile_beyond() - PAGE_SIZE + 1, 0xfee00000, U64_MAX,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(addrs); i++)
		link_up_for(hostile, "buffers at", addrs[i], bad_buffer);
	link_up_for(hostile, "buffers of", 0, bad_buffer_len);
	link_up_for(hostile, "buffers of", U32_MAX, bad_buffer_len);
}

/* Whatever the flags say, the worst is a wake-up too much: the frames still go. */
void hostile_attack_signals(struct hostile *hostile)
{
	static const u64 values[] = { 0, 1, 2, 0xff, 1ULL << 32, 1ULL << 63, U64_MAX };
	struct vbus_ring_header *rings[] = { hostile->rx, hostile->tx };
	int status = hostile_link_up(hostile), i, j;

	if (status < 0) {
		hostile_fail(hostile, "signals", 0, status);
		return;
	}
	for (i = 0; i < ARRAY_SIZE(values) * ARRAY_SIZE(values); i++) {
		for (j = 0; j < ARRAY_SIZE(rings); j++) {
			struct vbus_signal_pair *pair = &rings[j]->signal;
			__le64 enabled = cpu_to_le64(values[i % ARRAY_SIZE(values)]);
			__le64 dirty = cpu_to_le64(values[i / ARRAY_SIZE(values)]);

			WRITE_ONCE(pair->to_south.enabled, enabled);
			WRITE_ONCE(pair->to_south.dirty, dirty);
			WRITE_ONCE(pair->to_north.enabled, enabled);
			WRITE_ONCE(pair->to_north.dirty, dirty);
		}
		hostile_expect_harmless(hostile, "signals", i);
	}
}

/* Random words in both rings, under the eyes of the host: it is cut off, or nothing happens. */
void hostile_attack_scribble(struct hostile *hostile)
{
	struct vbus_ring_slot *tx = hostile_slots(hostile->tx), *rx = hostile_slots(hostile->rx);
	int round, i, status;

	for (round = 0; round < NUM_SCRIBBLES; round++) {
		status = hostile_link_up(hostile);
		if (status < 0) {
			hostile_fail(hostile, "scribble", round, status);
			continue;
		}
		for (i = 0; i < NUM_WORDS; i++) {
			u64 value = (u64)prandom_u32_state(&hostile->random) << 32 |
				    prandom_u32_state(&hostile->random);
			u32 word = prandom_u32_state(&hostile->random) % (HOSTILE_RING_SLOTS * 4);

			/* The host only reads where the slots for frames to send point to. */
			WRITE_ONCE(((u64 *)tx)[word], value);
			/* Of a slot to receive into, all but where it is. */
			WRITE_ONCE(((u64 *)&rx[word / 4])[1 + word % 3], value);
			if (i % 8 == 0)
				hostile_say_hello(hostile);
			usleep_range(100, 200);
		}
		hostile_say_hello(hostile);
		msleep(20);
		hostile_look_at_events(hostile);
		if (hostile->num_dropped)
			hostile_expect_cut_off(hostile, "scribble", round);
	}
	status = hostile_link_up(hostile);
	if (status < 0)
		hostile_fail(hostile, "after scribbling", 0, status);
	else
		hostile_expect_harmless(hostile, "after scribbling", 0);
}
