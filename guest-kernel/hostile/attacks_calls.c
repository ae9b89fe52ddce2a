// SPDX-License-Identifier: GPL-2.0
/* Attacks by calls, doorbells and resets. */
#include <linux/delay.h>
#include <linux/io.h>

#include "hostile.h"

/* Calls with random arguments. */
#define NUM_VERBS	300
/* Ids and handles that are guessed, from 0 on. */
#define NUM_GUESSES	64
#define NUM_DOORBELLS	3000
#define NUM_RESETS	24
/* Times that what is open is opened, and what is shared shared. */
#define NUM_AGAIN	40
/* More than events can wait to be taken. */
#define NUM_UNTAKEN	200
/* How long nothing is done at most. */
#define HOARD_PATIENCE	(120 * HZ)

static u32 below(struct hostile *hostile, u32 end)
{
	return prandom_u32_state(&hostile->random) % end;
}

/* A number that somebody may have forgotten to check. As an address, it is one of ours or none. */
static u64 nasty(struct hostile *hostile)
{
	static const u64 chosen[] = {
		0x80000000, 0xfffff000, 0xffffffff, 0x100000000, 0xc0000000, 0xe0000000, 0xfee00000,
		0x7fffffffffffffff, 0x8000000000000000, 0xfffffffffffff000, 0xffffffffffffffc0,
		0xffffffffffffffff,
	};
	u64 buffer = virt_to_phys(hostile->buffer);

	switch (below(hostile, 6)) {
	case 0:
		return buffer + below(hostile, HOSTILE_BUFFER_BYTES / 2);
	case 1:
		return buffer + below(hostile, HOSTILE_BUFFER_BYTES / 128) * 64;
	case 2:
		return hostile_beyond() + below(hostile, 2);
	case 3:
		return hostile->handle;
	case 4:
		/* Ids, lengths, queues. Memory starts with pages that nobody uses. */
		return below(hostile, 300);
	default:
		return chosen[below(hostile, ARRAY_SIZE(chosen))];
	}
}

void hostile_attack_verbs(struct hostile *hostile)
{
	u64 args[6];
	int i, j, status;

	status = hostile_link_up(hostile);
	if (status < 0) {
		hostile_fail(hostile, "verbs", 0, status);
		return;
	}
	for (i = 0; i < NUM_VERBS; i++) {
		u32 func = below(hostile, VBUS_PCI_FUNC_CLOSE + 3);

		for (j = 0; j < ARRAY_SIZE(args); j++)
			args[j] = below(hostile, 2) ? nasty(hostile) :
				  (u32)nasty(hostile) | nasty(hostile) << 32;
		if (i % 8 == 0) {
			/* Not even the call is where one can be, or there is none. */
			writeq(nasty(hostile),
			       hostile->registers + offsetof(struct vbus_pci_registers, call));
			outl(nasty(hostile), hostile->ports + VBUS_PCI_PORT_FAST_CALL);
		}
		status = hostile_call(hostile, func, args, sizeof(args));
		if (status == (s32)VBUS_PCI_STATUS_PENDING || status < -MAX_ERRNO)
			hostile_fail(hostile, "verb", func, status);
		if (i % 16 == 0)
			usleep_range(hostile->pause, 2 * hostile->pause + 1);
	}
	status = hostile_link_up(hostile);
	if (status < 0)
		hostile_fail(hostile, "after verbs", 0, status);
	else
		hostile_expect_harmless(hostile, "after verbs", 0);
}

static int open_id(struct hostile *hostile, u32 id)
{
	struct vbus_pci_open args = {
		.id = cpu_to_le32(id),
		.version = cpu_to_le32(VENET_VERSION),
	};

	return hostile_call(hostile, VBUS_PCI_FUNC_OPEN, &args, sizeof(args));
}

/* What is not on this bus, or not ours, is not there. */
void hostile_attack_guesses(struct hostile *hostile)
{
	static const u64 far[] = { 1ULL << 31, 1ULL << 32, 1ULL << 63, U64_MAX };
	u64 ours, guess;
	int i, status;

	status = hostile_link_up(hostile);
	if (status < 0) {
		hostile_fail(hostile, "guesses", 0, status);
		return;
	}
	ours = hostile->handle;
	for (i = 0; i < NUM_GUESSES + ARRAY_SIZE(far); i++) {
		struct vbus_pci_close close;

		guess = i < NUM_GUESSES ? i : far[i - NUM_GUESSES];
		status = open_id(hostile, guess);
		hostile_expect_refusal(hostile, "id", guess, status,
				       (u32)guess == hostile->id ? -EBUSY : -ENOENT);
		if (guess == ours)
			continue;
		hostile->handle = guess;
		status = hostile_device_call(hostile, VENET_FUNC_LINK_DOWN, 0);
		hostile_expect_refusal(hostile, "call of handle", guess, status, -ENOENT);
		status = hostile_share(hostile, VENET_SHM_ID_TX_SEGMENTS, hostile->pool,
				       HOSTILE_POOL_BYTES, VBUS_PCI_NO_SIGNAL, NULL);
		hostile_expect_refusal(hostile, "shm of handle", guess, status, -ENOENT);
		close.handle = cpu_to_le64(guess);
		status = hostile_call(hostile, VBUS_PCI_FUNC_CLOSE, &close, sizeof(close));
		hostile_expect_refusal(hostile, "close of handle", guess, status, -ENOENT);
	}
	hostile->handle = ours;
	/* All numbers that a signal can have, and some that none can have. */
	for (i = 0; i < VBUS_PCI_NUM_SIGNALS + 8; i++)
		hostile_ring(hostile, i);
	hostile_ring(hostile, U32_MAX);
	hostile_expect_harmless(hostile, "guesses", 0);
}

/* Makes the host tell an event in queue @idx: that it has let go of memory. */
static void cause_event(struct hostile *hostile, u32 idx)
{
	struct vbus_pci_shm shm = {
		.addr = cpu_to_le64(virt_to_phys(hostile->pool)),
		.len = cpu_to_le32(HOSTILE_POOL_BYTES),
		.id = cpu_to_le32(VENET_SHM_ID_TX_SEGMENTS),
		.priority = cpu_to_le32(2 * idx),
		.signal_offset = cpu_to_le32(VBUS_PCI_NO_SIGNAL),
	};
	struct vbus_pci_close close;

	if (hostile_open(hostile) < 0)
		return;
	shm.handle = cpu_to_le64(hostile->handle);
	hostile_call(hostile, VBUS_PCI_FUNC_SHM, &shm, sizeof(shm));
	close.handle = cpu_to_le64(hostile->handle);
	hostile_call(hostile, VBUS_PCI_FUNC_CLOSE, &close, sizeof(close));
}

void hostile_attack_events(struct hostile *hostile)
{
	static const u16 turns[] = { 2, 0x8000, 0xfffe };
	int i, status;

	for (i = 0; i < ARRAY_SIZE(turns) * VBUS_PCI_NUM_EVENT_QUEUES; i++) {
		u32 idx = i % VBUS_PCI_NUM_EVENT_QUEUES;
		u16 turn = turns[i / VBUS_PCI_NUM_EVENT_QUEUES];

		status = hostile_start(hostile, 1);
		if (status < 0) {
			hostile_fail(hostile, "event queue", idx, status);
			continue;
		}
		/* One slot is right, and the next one is not. */
		WRITE_ONCE(hostile_slots(hostile->event_rings[idx])[1].turn, cpu_to_le16(turn));
		cause_event(hostile, idx);
		cause_event(hostile, idx);
		hostile_ring(hostile, idx);
		hostile_expect_stop(hostile, "event queue turn", turn);
	}
}

/* Opens what is open, shares what is shared, and never takes an event. */
void hostile_attack_handles(struct hostile *hostile)
{
	struct vbus_pci_close close;
	int i, status;

	status = hostile_link_up(hostile);
	if (status < 0) {
		hostile_fail(hostile, "handles", 0, status);
		return;
	}
	for (i = 0; i < NUM_AGAIN; i++) {
		status = open_id(hostile, hostile->id);
		hostile_expect_refusal(hostile, "second open", i, status, -EBUSY);
		status = hostile_share(hostile, VENET_SHM_ID_TX_SEGMENTS, hostile->pool,
				       HOSTILE_POOL_BYTES, VBUS_PCI_NO_SIGNAL, NULL);
		hostile_expect_refusal(hostile, "second share", i, status, -EEXIST);
	}
	status = hostile_start(hostile, 1);
	for (i = 0; i < NUM_UNTAKEN && status >= 0; i++) {
		status = hostile_open(hostile);
		if (status >= 0)
			status = hostile_share_all(hostile);
		close.handle = cpu_to_le64(hostile->handle);
		hostile_call(hostile, VBUS_PCI_FUNC_CLOSE, &close, sizeof(close));
		if (i % 16 == 0)
			usleep_range(hostile->pause, 2 * hostile->pause + 1);
	}
	/* It ends with the events that wait to be taken. */
	hostile_expect_refusal(hostile, "share without taking events", i, status, -EDQUOT);
}

void hostile_attack_doorbells(struct hostile *hostile)
{
	int status = hostile_link_up(hostile), i;

	if (status < 0) {
		hostile_fail(hostile, "doorbells", 0, status);
		return;
	}
	for (i = 0; i < NUM_DOORBELLS; i++) {
		hostile_ring(hostile, i % 4 ? hostile->tx_signal : i / 4 % 160);
		if (i % 4 == 1) /* any port, of any signal and of none, but for calls */
			outb(i, hostile->ports + VBUS_PCI_PORT_FAST_CALL + sizeof(u32) +
				i / 4 % (VBUS_PCI_PORTS_BAR_BYTES - VBUS_PCI_PORT_FAST_CALL -
					 sizeof(u32)));
		if (i % 64 == 0)
			usleep_range(hostile->pause, 2 * hostile->pause + 1);
	}
	hostile_expect_harmless(hostile, "doorbells", NUM_DOORBELLS);
}

/* At all points on the way to a link that is up, and with frames on their way. */
void hostile_attack_resets(struct hostile *hostile)
{
	u16 command;
	int i, j, status = 0;

	for (i = 0; i < NUM_RESETS && status >= 0; i++) {
		switch (i % 4) {
		case 0:
			hostile_reset(hostile);
			break;
		case 1:
			hostile_reset(hostile);
			status = hostile_negotiate(hostile);
			for (j = 0; j < i % VBUS_PCI_NUM_EVENT_QUEUES && status >= 0; j++)
				status = hostile_add_queue(hostile, j, i % 2);
			break;
		case 2:
			status = hostile_start(hostile, 1);
			if (status >= 0)
				status = hostile_open(hostile);
			break;
		case 3:
			status = hostile_link_up(hostile);
			for (j = 0; j < HOSTILE_RING_SLOTS / 2; j++)
				hostile_say_hello(hostile);
			break;
		}
		if (i % 8 >= 4)
			continue;
		/* The other way to reset. */
		pci_read_config_word(hostile->pdev, PCI_COMMAND, &command);
		pci_write_config_word(hostile->pdev, PCI_COMMAND, command & ~PCI_COMMAND_MASTER);
		pci_write_config_word(hostile->pdev, PCI_COMMAND, command);
		usleep_range(hostile->pause, 2 * hostile->pause + 1);
	}
	if (status >= 0)
		status = hostile_link_up(hostile);
	if (status < 0)
		hostile_fail(hostile, "reset", i, status);
	else
		hostile_expect_harmless(hostile, "resets", NUM_RESETS);
}

/* Leaves its buffers full, whatever comes, until the host takes the interface away. */
void hostile_attack_hoard(struct hostile *hostile)
{
	unsigned long end = jiffies + HOARD_PATIENCE;
	int status = hostile_link_up(hostile);

	if (status < 0) {
		hostile_fail(hostile, "hoard", 0, status);
		return;
	}
	while (!hostile->num_dropped && time_before(jiffies, end)) {
		msleep(50);
		hostile_look_at_events(hostile);
	}
	hostile_expect_cut_off(hostile, "hoard", 0);
}
