// SPDX-License-Identifier: GPL-2.0
/*
 * The ring of blocks that are given away, and free memory in it.
 *
 * Free memory is given away by the kernel's free page reporting: it takes blocks off the free lists,
 * calls us with up to 32 of them, and puts them back when we return. Nobody can allocate them
 * meanwhile, and nobody has to be told when they are used again.
 *
 * So we must not return before the host is done with every block. Nothing is allocated on the way: the
 * memory may be short.
 */
#include <linux/log2.h>
#include <linux/mm.h>

#include <alacrity/vbus_ring.h>

#include "hints.h"

#define HINTS_RELEASE_PRIORITY	0

/* The kernel reports a sixteenth of each free list in a pass, and a few blocks more. */
#define HINTS_MAX_PASSES	64

static_assert(PAGE_REPORTING_CAPACITY <= HINTS_RELEASE_SLOTS);
static_assert(HINTS_EVICT_FOLIOS <= HINTS_RELEASE_SLOTS);

static void hints_release_notify(struct vbus_ring *ring, void *context)
{
	struct hints *hints = context;

	WRITE_ONCE(hints->release.is_woken, true);
	wake_up(&hints->release.wait);
}

void hints_release_init(struct hints *hints)
{
	mutex_init(&hints->release.lock);
	init_waitqueue_head(&hints->release.wait);
}

int hints_release_share(struct hints *hints)
{
	struct hints_release *release = &hints->release;

	release->ring = hints_ring_alloc(hints, "release", HINTS_RELEASE_SLOTS,
					 hints_release_notify);
	if (IS_ERR(release->ring))
		return PTR_ERR(release->ring);
	return vbus_ring_share(hints->vdev, release->ring, HINTS_SHM_ID_RELEASE_RING,
			       HINTS_RELEASE_PRIORITY);
}

static void hints_count_block(struct hints_release *release, const struct vbus_ring_slot *slot)
{
	const struct hints_release_meta *meta = (const void *)slot->meta;

	if (meta->result == HINTS_RELEASE_RESULT_TAKEN && meta->kind == HINTS_RELEASE_KIND_EVICTED) {
		release->num_evicted_bytes += le32_to_cpu(slot->len);
	} else if (meta->result == HINTS_RELEASE_RESULT_TAKEN) {
		release->num_blocks++;
		release->num_bytes += le32_to_cpu(slot->len);
		release->num_freed_bytes += le64_to_cpu(meta->num_freed);
	} else {
		release->num_kept_blocks++;
	}
}

/* Sleeps until the host has returned @num_blocks, or will never use them again. */
static int hints_await_blocks(struct hints *hints, u32 num_blocks)
{
	struct hints_release *release = &hints->release;
	struct vbus_ring *ring = release->ring;
	int nth, num_back;

	for (;;) {
		WRITE_ONCE(release->is_woken, false);
		vbus_ring_disable_notify(ring);
		num_back = vbus_ring_returned(ring);
		if (num_back < 0 || num_back > num_blocks)
			break;
		for (nth = 0; nth < num_back; nth++)
			hints_count_block(release, vbus_ring_returned_slot(ring, nth));
		vbus_ring_release(ring, num_back);
		num_blocks -= num_back;
		if (!num_blocks)
			return 0;
		if (READ_ONCE(hints->is_closed))
			return -ENODEV;
		if (vbus_ring_enable_notify(ring))
			wait_event_idle(release->wait, READ_ONCE(release->is_woken) ||
						       READ_ONCE(hints->is_closed));
	}
	dev_err(&hints->vdev->dev, "the device broke the release ring\n");
	WRITE_ONCE(hints->is_ending, true);
	/* What it does with the blocks is unknown until it has let go. */
	hints_close(hints);
	wait_event_idle(release->wait, READ_ONCE(hints->is_closed));
	return -EPROTO;
}

/**
 * hints_release_begin - makes the release ring the caller's
 * @hints: started
 *
 * Return: whether blocks can be given away; if so hints_release_end() must follow
 */
bool hints_release_begin(struct hints *hints)
{
	struct hints_release *release = &hints->release;

	mutex_lock(&release->lock);
	release->num_posted = 0;
	if (!READ_ONCE(hints->is_ending))
		return true;
	mutex_unlock(&release->lock);
	return false;
}

/**
 * hints_release_block - puts a block into the ring
 * @hints: after hints_release_begin(); at most HINTS_RELEASE_SLOTS times
 * @addr: of a block that is the guest's own
 * @len: a power of two of pages
 * @kind: HINTS_RELEASE_KIND_*
 */
void hints_release_block(struct hints *hints, u64 addr, u32 len, u8 kind)
{
	struct hints_release *release = &hints->release;
	struct vbus_ring_slot *slot = vbus_ring_free_slot(release->ring, release->num_posted++);
	struct hints_release_meta *meta = (void *)slot->meta;

	slot->addr = cpu_to_le64(addr);
	slot->len = cpu_to_le32(len);
	*meta = (struct hints_release_meta){ .kind = kind };
}

/**
 * hints_release_end - sends the blocks, and sleeps until the host is done with all of them
 * @hints: after hints_release_begin()
 *
 * Return: 0, -ENODEV or -EPROTO: then the host may have taken some or none
 */
int hints_release_end(struct hints *hints)
{
	struct hints_release *release = &hints->release;
	int err;

	vbus_ring_publish(release->ring, release->num_posted);
	vbus_ring_signal(release->ring);
	err = hints_await_blocks(hints, release->num_posted);
	mutex_unlock(&release->lock);
	return err;
}

static int hints_report(struct page_reporting_dev_info *reporting, struct scatterlist *blocks,
			unsigned int num_blocks)
{
	struct hints *hints = container_of(reporting, struct hints, release.reporting);
	struct scatterlist *block;
	unsigned int nth;

	if (!hints_release_begin(hints))
		return -ENODEV;
	for_each_sg(blocks, block, num_blocks, nth)
		hints_release_block(hints, sg_phys(block), block->length, HINTS_RELEASE_KIND_FREE);
	return hints_release_end(hints);
}

/**
 * hints_release_register - begins to give away free memory
 * @hints: started
 */
void hints_release_register(struct hints *hints)
{
	struct page_reporting_dev_info *reporting = &hints->release.reporting;
	unsigned long num_pages = hints->release_bytes >> PAGE_SHIFT;
	int err;

	reporting->report = hints_report;
	/* 0 would mean "the kernel's choice". */
	reporting->order = num_pages > 2 ? ilog2(num_pages) : 1;
	err = page_reporting_register(reporting);
	if (err == -EBUSY)
		dev_warn(&hints->vdev->dev,
			 "free memory is not released: another driver, virtio_balloon perhaps, reports it already\n");
	else if (err)
		dev_err(&hints->vdev->dev, "free memory is not released: %d\n", err);
	hints->release.is_registered = !err;
}

void hints_release_unregister(struct hints *hints)
{
	if (!hints->release.is_registered)
		return;
	page_reporting_unregister(&hints->release.reporting);
	hints->release.is_registered = false;
}

/**
 * hints_release_now - gives away what is free, without the seconds that the kernel takes its time
 * @hints: the caller is its event work, so it does not end before we return
 */
void hints_release_now(struct hints *hints)
{
	struct hints_release *release = &hints->release;
	struct delayed_work *work = &release->reporting.work;
	u64 before;
	int pass;

	if (!release->is_registered)
		return;
	for (pass = 0; pass < HINTS_MAX_PASSES && !READ_ONCE(hints->is_ending); pass++) {
		before = READ_ONCE(release->num_blocks) + READ_ONCE(release->num_kept_blocks);
		mod_delayed_work(system_wq, work, 0);
		flush_delayed_work(work);
		release->num_passes++;
		if (READ_ONCE(release->num_blocks) + READ_ONCE(release->num_kept_blocks) == before)
			break;
	}
}
