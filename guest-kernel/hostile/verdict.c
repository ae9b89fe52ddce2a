// SPDX-License-Identifier: GPL-2.0
/* Whether the host did what it has to. */
#include <linux/delay.h>

#include "hostile.h"

/* Rings and pool of an interface that is up. */
#define NUM_SHMS	3

static void judge(struct hostile *hostile, bool is_right, u32 *count, const char *what, u64 value)
{
	hostile->cases.tried++;
	if (is_right) {
		++*count;
	} else {
		hostile->cases.failed++;
		pr_err("vbus_hostile: %s %#llx: dropped %u times, %u of %u memories closed\n",
		       what, value, hostile->num_dropped, hostile->num_closed, NUM_SHMS);
	}
	usleep_range(hostile->pause, 2 * hostile->pause + 1);
}

void hostile_count(struct hostile *hostile, u32 *count)
{
	hostile->cases.tried++;
	++*count;
	usleep_range(hostile->pause, 2 * hostile->pause + 1);
}

void hostile_fail(struct hostile *hostile, const char *what, u64 value, int status)
{
	hostile->cases.tried++;
	hostile->cases.failed++;
	pr_err("vbus_hostile: %s %#llx: status %d\n", what, value, status);
}

void hostile_expect_cut_off(struct hostile *hostile, const char *what, u64 value)
{
	struct vbus_pci_close close = { .handle = cpu_to_le64(hostile->handle) };
	unsigned long end = jiffies + HOSTILE_PATIENCE;
	bool is_right;

	hostile_look_at_events(hostile);
	while ((!hostile->num_dropped || hostile->num_closed < NUM_SHMS) &&
	       time_before(jiffies, end)) {
		usleep_range(500, 1000);
		hostile_look_at_events(hostile);
	}
	is_right = hostile->num_dropped == 1 && hostile->num_closed == NUM_SHMS;
	is_right &= hostile_device_call(hostile, VENET_FUNC_LINK_DOWN, 0) == -ENODEV;
	is_right &= hostile_call(hostile, VBUS_PCI_FUNC_CLOSE, &close, sizeof(close)) == 0;
	judge(hostile, is_right, &hostile->cases.cut_off, what, value);
}

void hostile_expect_stop(struct hostile *hostile, const char *what, u64 value)
{
	unsigned long end = jiffies + HOSTILE_PATIENCE;
	u64 nothing = 0;
	int status;

	do {
		usleep_range(500, 1000);
		status = hostile_call(hostile, VBUS_PCI_FUNC_CLOSE, &nothing, sizeof(nothing));
	} while (status != -EIO && time_before(jiffies, end));
	judge(hostile, status == -EIO, &hostile->cases.stopped, what, value);
}

void hostile_expect_harmless(struct hostile *hostile, const char *what, u64 value)
{
	bool is_right = hostile_was_taken(hostile);

	hostile_say_hello(hostile);
	is_right &= hostile_was_taken(hostile);
	hostile_look_at_events(hostile);
	judge(hostile, is_right && !hostile->num_dropped, &hostile->cases.harmless, what, value);
}

void hostile_expect_refusal(struct hostile *hostile, const char *what, u64 value, int status,
			    int wanted)
{
	bool is_right = wanted ? status == wanted : status < 0 && status >= -MAX_ERRNO;

	if (!is_right)
		pr_err("vbus_hostile: %s %#llx: status %d\n", what, value, status);
	judge(hostile, is_right, &hostile->cases.refused, what, value);
}
