// SPDX-License-Identifier: GPL-2.0
/*
 * cd /sys/module/vbus_times/parameters
 * echo 'call 1000' >run && cat run		nanoseconds for 1,000 calls
 *
 * Takes the first interface of the kind "virtual-ethernet" for itself: unload venet first.
 */
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>
#include <linux/timekeeping.h>

#include "times.h"

/* Longest batch: at a millisecond each some seconds, in which the module cannot be unloaded. */
#define TIMES_MOST	1000000

static const struct times_subject subjects[] = {
	{ "nothing", times_nothing },
	{ "call", times_vbus_call },
	{ "pio-exit", times_pio_exit },
	{ "virtio-ctrl", times_control_queue },
	{ "doorbell", times_doorbell },
	{ "suppressed", times_suppressed },
	{ "pio-eventfd", times_pio_eventfd },
	{ "mmio-eventfd", times_mmio_eventfd },
};

static u64 last_ns;

static int times_set(const char *text, const struct kernel_param *param)
{
	char name[16];
	u64 begin;
	u32 num;
	int i, ret;

	if (sscanf(text, "%15s %u", name, &num) != 2 || !num || num > TIMES_MOST)
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(subjects); i++) {
		if (strcmp(subjects[i].name, name))
			continue;
		begin = ktime_get_ns();
		ret = subjects[i].run(num);
		last_ns = ktime_get_ns() - begin;
		return ret;
	}
	return -EINVAL;
}

static int times_get(char *buffer, const struct kernel_param *param)
{
	return sysfs_emit(buffer, "%llu\n", last_ns);
}

static const struct kernel_param_ops times_ops = { .set = times_set, .get = times_get };
module_param_cb(run, &times_ops, NULL, 0600);
MODULE_PARM_DESC(run, "write 'SUBJECT NUMBER' to do it so many times, read how many nanoseconds it took");

static int __init times_init(void)
{
	int ret = times_register_driver();

	if (ret)
		return ret;
	ret = times_order_doorbells();
	if (ret)
		times_unregister_driver();
	return ret;
}

static void __exit times_exit(void)
{
	times_unmap();
	times_unregister_driver();
}

module_init(times_init);
module_exit(times_exit);

MODULE_DESCRIPTION("Measures the verbs of the virtual bus");
MODULE_LICENSE("GPL");
