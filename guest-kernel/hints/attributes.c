// SPDX-License-Identifier: GPL-2.0
/* Counters below /sys/bus/vbus/devices/vbusID/hints/, one value in each file. */
#include <linux/sysfs.h>

#include "hints.h"

/* The driver is bound while its attributes are there. */
static struct hints *hints_of(struct device *dev)
{
	return vbus_get_drvdata(to_vbus_device(dev));
}

#define HINTS_COUNTER(name, field)								\
static ssize_t name##_show(struct device *dev, struct device_attribute *attr, char *buf)	\
{												\
	return sysfs_emit(buf, "%llu\n", (u64)READ_ONCE(hints_of(dev)->field));			\
}												\
static DEVICE_ATTR_RO(name)

HINTS_COUNTER(events, num_events);
HINTS_COUNTER(is_reporting, release.is_registered);
HINTS_COUNTER(released_blocks, release.num_blocks);
HINTS_COUNTER(released_bytes, release.num_bytes);
HINTS_COUNTER(dropped_pages, evict.num_dropped);
HINTS_COUNTER(evicted_bytes, release.num_evicted_bytes);
HINTS_COUNTER(kept_blocks, release.num_kept_blocks);
HINTS_COUNTER(freed_bytes, release.num_freed_bytes);
HINTS_COUNTER(passes, release.num_passes);
HINTS_COUNTER(scan_rounds, scan.num_rounds);
HINTS_COUNTER(scanned_pages, scan.num_looks);
HINTS_COUNTER(word_changes, scan.num_changes);
HINTS_COUNTER(refused_words, scan.num_refused);
HINTS_COUNTER(disks, scan.num_slots);
HINTS_COUNTER(volatile_pages, scan.last_counts[HINTS_VOLATILE]);
HINTS_COUNTER(maybe_volatile_pages, scan.last_counts[HINTS_MAYBE_VOLATILE]);
HINTS_COUNTER(old_pages, scan.last_num_old);
HINTS_COUNTER(swap_cache_pages, scan.last_num_swap);
HINTS_COUNTER(other_pages, scan.last_counts[HINTS_OTHER]);
HINTS_COUNTER(busy_pages, scan.last_counts[HINTS_BUSY]);
HINTS_COUNTER(dirty_pages, scan.last_counts[HINTS_DIRTY]);
HINTS_COUNTER(pinned_pages, scan.last_counts[HINTS_PINNED]);
HINTS_COUNTER(file_system_pages, scan.last_counts[HINTS_FILE_SYSTEM]);

static struct attribute *hints_attrs[] = {
	&dev_attr_events.attr,
	&dev_attr_is_reporting.attr,
	&dev_attr_released_blocks.attr,
	&dev_attr_released_bytes.attr,
	&dev_attr_dropped_pages.attr,
	&dev_attr_evicted_bytes.attr,
	&dev_attr_kept_blocks.attr,
	&dev_attr_freed_bytes.attr,
	&dev_attr_passes.attr,
	&dev_attr_scan_rounds.attr,
	&dev_attr_scanned_pages.attr,
	&dev_attr_word_changes.attr,
	&dev_attr_refused_words.attr,
	&dev_attr_disks.attr,
	&dev_attr_volatile_pages.attr,
	&dev_attr_maybe_volatile_pages.attr,
	&dev_attr_old_pages.attr,
	&dev_attr_swap_cache_pages.attr,
	&dev_attr_other_pages.attr,
	&dev_attr_busy_pages.attr,
	&dev_attr_dirty_pages.attr,
	&dev_attr_pinned_pages.attr,
	&dev_attr_file_system_pages.attr,
	NULL,
};

static const struct attribute_group hints_group = {
	.name = "hints",
	.attrs = hints_attrs,
};

const struct attribute_group *hints_groups[] = {
	&hints_group,
	NULL,
};
