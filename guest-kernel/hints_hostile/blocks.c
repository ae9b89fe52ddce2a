// SPDX-License-Identifier: GPL-2.0
/* Releases and calls that break the rules, or harm nobody but the guest. */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include <alacrity/vbus_ring.h>

#include "hints_hostile.h"

/* How long the host may take, which may be emulated, and busy; and where it need not answer. */
#define LIAR_PATIENCE	(10 * HZ)
#define LIAR_IMPATIENCE	HZ
#define LIAR_ORDER	6	/* of blocks of our own: 256 KiB */
#define LIAR_NUM_CALLS	300
#define LIAR_NUM_AGAIN	200
/* A call that no device has. */
#define LIAR_NO_FUNC	99

static void liar_fill(struct vbus_ring_slot *slot, u64 addr, u32 len)
{
	memset(slot->meta, 0, sizeof(slot->meta));
	slot->addr = cpu_to_le64(addr);
	slot->len = cpu_to_le32(len);
}

/*
 * Publishes @num_slots, which are filled, and waits for the host. 0 if it has returned them, -ENODEV if
 * it has cut us off.
 */
static int liar_await(struct liar *liar, u32 num_slots, unsigned long patience)
{
	unsigned long end = jiffies + patience;
	int num_back;

	vbus_ring_publish(liar->release, num_slots);
	vbus_ring_signal(liar->release);
	do {
		num_back = vbus_ring_returned(liar->release);
		if (num_back == num_slots) {
			vbus_ring_release(liar->release, num_slots);
			return 0;
		}
		if (vbus_call(liar->vdev, LIAR_NO_FUNC, NULL, 0) == -ENODEV)
			return -ENODEV;
		usleep_range(500, 1000);
	} while (time_before(jiffies, end));
	return -ETIME;
}

static void liar_tell(const char *mode, int status)
{
	pr_info("hints_hostile: %s: %s\n", mode,
		status == -ENODEV ? "cut off" : status ? "NO ANSWER" : "answered");
}

/* One block that is none. */
static bool liar_bad_block(struct liar *liar, const char *mode)
{
	const u64 end = liar->num_pages << PAGE_SHIFT, block = liar->release_bytes;
	const struct {
		const char *name;
		u64 addr;
		u32 len;
		struct hints_release_meta meta;
	} blocks[] = {
		{ "behind", end, PAGE_SIZE },
		{ "across", end - PAGE_SIZE, 2 * PAGE_SIZE },
		{ "nowhere", U64_MAX & PAGE_MASK, PAGE_SIZE },
		{ "wrapping", U64_MAX - HINTS_MAX_RELEASE_BYTES + 1, HINTS_MAX_RELEASE_BYTES },
		{ "device", 0xfee00000, PAGE_SIZE },
		{ "huge", 0, 2 * HINTS_MAX_RELEASE_BYTES },
		{ "endless", 0, 1U << 31 },
		{ "odd", block, 3 * PAGE_SIZE },
		{ "small", block, 512 },
		{ "empty", block, 0 },
		{ "unaligned", block + PAGE_SIZE, 2 * PAGE_SIZE },
		{ "kind", block, PAGE_SIZE, { .kind = 7 } },
		{ "reserved", block, PAGE_SIZE, { .reserved1 = cpu_to_le32(1) } },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(blocks); i++) {
		struct vbus_ring_slot *slot = vbus_ring_free_slot(liar->release, 0);

		if (strcmp(blocks[i].name, mode))
			continue;
		liar_fill(slot, blocks[i].addr, blocks[i].len);
		memcpy(slot->meta, &blocks[i].meta, sizeof(slot->meta));
		liar_tell(mode, liar_await(liar, 1, LIAR_PATIENCE));
		return true;
	}
	return false;
}

/* The same block of ours many times at once, and parts of it. */
static int liar_duplicates(struct liar *liar)
{
	void *block = (void *)__get_free_pages(GFP_KERNEL, LIAR_ORDER);
	u32 room = vbus_ring_room(liar->release), nth;
	int status;

	if (!block)
		return -ENOMEM;
	memset(block, 0xaa, PAGE_SIZE << LIAR_ORDER);
	for (nth = 0; nth < room; nth++)
		liar_fill(vbus_ring_free_slot(liar->release, nth),
			  virt_to_phys(block) + (nth % 3 == 2 ? PAGE_SIZE : 0),
			  nth % 3 ? PAGE_SIZE : PAGE_SIZE << LIAR_ORDER);
	status = liar_await(liar, room, LIAR_PATIENCE);
	if (!status && memchr_inv(block, 0, PAGE_SIZE << LIAR_ORDER))
		pr_err("hints_hostile: a block that was taken is not zero\n");
	/* Nobody knows what the host does with it if it has not answered. */
	if (status != -ETIME)
		free_pages((unsigned long)block, LIAR_ORDER);
	return status;
}

/* What the host itself reads and writes, while it does. It may never see what was in the ring. */
static int liar_own_rings(struct liar *liar)
{
	u32 nth, num = min(liar->num_tables, 8U);
	int status;

	for (nth = 0; nth < num; nth++)
		liar_fill(vbus_ring_free_slot(liar->release, nth),
			  virt_to_phys(liar->tables[nth].memory) & PAGE_MASK, PAGE_SIZE);
	liar_fill(vbus_ring_free_slot(liar->release, nth++),
		  virt_to_phys(liar->events->slots) & PAGE_MASK, PAGE_SIZE);
	liar_fill(vbus_ring_free_slot(liar->release, nth++),
		  virt_to_phys(liar->release->slots) & PAGE_MASK, PAGE_SIZE);
	liar_fill(vbus_ring_free_slot(liar->release, nth),
		  virt_to_phys(liar->release->slots) & PAGE_MASK, PAGE_SIZE);
	nth++;
	status = liar_await(liar, nth, LIAR_IMPATIENCE);
	return status == -ETIME ? vbus_call(liar->vdev, HINTS_FUNC_STOP, NULL, 0) : status;
}

static int liar_use(void *context)
{
	u64 *words = context, i = 0;

	while (!kthread_should_stop()) {
		u64 *word = &words[i++ * 13 % ((PAGE_SIZE << LIAR_ORDER) / sizeof(*words))];

		WRITE_ONCE(*word, READ_ONCE(*word) + 1);
		if (i % 4096 == 0)
			cond_resched();
	}
	return 0;
}

/* A block that all processors write to meanwhile, which nobody should do. */
static int liar_in_use(struct liar *liar)
{
	void *block = (void *)__get_free_pages(GFP_KERNEL, LIAR_ORDER);
	struct task_struct *users[8] = {};
	int status = 0, cpu, i;

	if (!block)
		return -ENOMEM;
	for_each_online_cpu(cpu) {
		if (cpu < ARRAY_SIZE(users))
			users[cpu] = kthread_create_on_cpu(liar_use, block, cpu, "user/%u");
		if (cpu < ARRAY_SIZE(users) && !IS_ERR(users[cpu]))
			wake_up_process(users[cpu]);
	}
	for (i = 0; i < LIAR_NUM_AGAIN && !status; i++) {
		liar_fill(vbus_ring_free_slot(liar->release, 0), virt_to_phys(block),
			  PAGE_SIZE << LIAR_ORDER);
		status = liar_await(liar, 1, LIAR_PATIENCE);
	}
	for (i = 0; i < ARRAY_SIZE(users); i++)
		if (!IS_ERR_OR_NULL(users[i]))
			kthread_stop(users[i]);
	if (status != -ETIME)
		free_pages((unsigned long)block, LIAR_ORDER);
	return status;
}

/* All memory there is, from the end: what is left of the guest does not matter. */
static int liar_suicide(struct liar *liar)
{
	u64 addr = (liar->num_pages << PAGE_SHIFT) & ~(u64)(HINTS_MAX_RELEASE_BYTES - 1);
	u32 nth;

	while (addr) {
		for (nth = 0; addr && nth < vbus_ring_room(liar->release); nth++) {
			addr -= HINTS_MAX_RELEASE_BYTES;
			liar_fill(vbus_ring_free_slot(liar->release, nth), addr,
				  HINTS_MAX_RELEASE_BYTES);
		}
		liar_await(liar, nth, LIAR_IMPATIENCE);
	}
	return 0;
}

static int liar_calls(struct liar *liar)
{
	u8 data[64];
	int i, ret;

	for (i = 0; i < LIAR_NUM_CALLS; i++) {
		u32 func = prandom_u32_state(&liar->random) % 8;
		u32 len = prandom_u32_state(&liar->random) % sizeof(data);

		/* Half of them have the length of something. */
		if (i % 2)
			len = func == HINTS_FUNC_HELLO ? sizeof(struct hints_hello_data) :
			      func == HINTS_FUNC_DISK ? sizeof(struct hints_disk_data) :
			      func == HINTS_FUNC_RELEASED ? sizeof(u64) : 0;
		prandom_bytes_state(&liar->random, data, sizeof(data));
		if (i % 3 == 0)
			memset(data + 1, 0, sizeof(data) - 1);
		ret = vbus_call(liar->vdev, func, data, len);
		if (ret < -MAX_ERRNO || ret > 0) {
			pr_err("hints_hostile: call %u: %d\n", func, ret);
			return -EPROTO;
		}
	}
	/* Whatever they did, it can be stopped and started again. */
	vbus_call(liar->vdev, HINTS_FUNC_STOP, NULL, 0);
	ret = vbus_call(liar->vdev, HINTS_FUNC_START, NULL, 0);
	return ret < 0 ? -EPROTO : 0;
}

bool liar_attack(struct liar *liar, const char *mode)
{
	static const struct {
		const char *name;
		int (*run)(struct liar *liar);
	} attacks[] = {
		{ "duplicates", liar_duplicates },
		{ "own-rings", liar_own_rings },
		{ "in-use", liar_in_use },
		{ "suicide", liar_suicide },
		{ "calls", liar_calls },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(attacks); i++) {
		if (strcmp(attacks[i].name, mode))
			continue;
		liar_tell(mode, attacks[i].run(liar));
		return true;
	}
	return liar_bad_block(liar, mode);
}
