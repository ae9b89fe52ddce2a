/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Driver of "page-hints" interfaces: tells the host what the guest's pages are worth (docs/abi.md).
 *
 * main.c	connects, starts and ends
 * release.c	gives away free memory, by the kernel's free page reporting
 * scan.c	the scanner: what pages are worth
 * place.c	where the bytes of a page are on a disk
 * evict.c	gives away pages that the host has dropped
 * events.c	does what the host asks for
 * attributes.c	counters below /sys/bus/vbus/devices/
 */
#ifndef HINTS_H
#define HINTS_H

#include <linux/mutex.h>
#include <linux/page_reporting.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include <alacrity/vbus.h>

/* Blocks that can be on their way to the host and back. */
#define HINTS_RELEASE_SLOTS	64

/**
 * struct hints_release - blocks that are given away; all but @wait of who holds @lock
 * @reporting: what the kernel calls with blocks that are free
 * @lock: held while blocks are on their way
 * @ring: they go to the host and come back
 * @num_posted: blocks that are on their way
 * @wait: for the host
 * @is_woken: it has returned some
 * @is_registered: @reporting is the kernel's
 * @num_passes: passes that were run because the host asked for one
 * @num_blocks: blocks that the host has taken
 * @num_bytes: in them
 * @num_evicted_bytes: in pages that the guest had removed from a cache
 * @num_kept_blocks: blocks that it did not want
 * @num_freed_bytes: of the host's memory, by its own account
 */
struct hints_release {
	struct page_reporting_dev_info reporting;
	struct mutex lock;
	struct vbus_ring *ring;
	u32 num_posted;
	wait_queue_head_t wait;
	bool is_woken;
	bool is_registered;
	u64 num_passes;
	u64 num_blocks;
	u64 num_bytes;
	u64 num_evicted_bytes;
	u64 num_kept_blocks;
	u64 num_freed_bytes;
};

/* Fields of a word: disk and sector; and all but the sequence. */
#define HINTS_WORD_CONTENT_MASK		((1ULL << HINTS_WORD_SEQUENCE_SHIFT) - 1)
#define HINTS_WORD_PLACE_MASK							\
	(HINTS_WORD_CONTENT_MASK & ~((1ULL << HINTS_WORD_DISK_SHIFT) - 1))

/* Disks with a serial number that are remembered, whether or not the host knows them. */
#define HINTS_MAX_DISKS		16

/**
 * enum hints_verdict - what the scanner finds a page to be
 * @HINTS_VOLATILE: the same as its sectors
 * @HINTS_MAYBE_VOLATILE: as that, and somebody may write to it through a mapping
 * @HINTS_OTHER: free, anonymous, of the kernel, of a file without a disk
 * @HINTS_BUSY: locked, or on its way to somewhere
 * @HINTS_DIRTY: not the same as its sectors
 * @HINTS_PINNED: locked into memory, or used by a device
 * @HINTS_FILE_SYSTEM: of a file system that keeps other bytes on the disk, or who knows where
 * @HINTS_NUM_VERDICTS: their number
 */
enum hints_verdict {
	HINTS_VOLATILE,
	HINTS_MAYBE_VOLATILE,
	HINTS_OTHER,
	HINTS_BUSY,
	HINTS_DIRTY,
	HINTS_PINNED,
	HINTS_FILE_SYSTEM,
	HINTS_NUM_VERDICTS,
};

/**
 * struct hints_disk - a disk that has a serial number
 * @diskseq: says which one
 * @slot: how words name it; 0 if the host does not know it
 */
struct hints_disk {
	u64 diskseq;
	u8 slot;
};

/**
 * struct hints_scan - the scanner; all but @wait, @is_woken and @rate of its thread
 * @tables: words
 * @num_tables: length of @tables
 * @num_pages: pages that have a word
 * @thread: while it runs
 * @wait: of the thread
 * @is_woken: it has something to do
 * @rate: pages in a second that the host allows
 * @next: page to be looked at next
 * @disks: that are remembered
 * @num_disks: their number
 * @num_slots: disks that the host knows
 * @num_rounds: rounds through all memory
 * @num_looks: pages that were looked at
 * @num_changes: words that were changed
 * @num_refused: words that the host found wrong
 * @counts: pages of the current round, by verdict
 * @num_old: volatile ones of it with the greatest age
 * @num_swap: volatile ones of it in the swap cache
 * @last_counts: pages of the last whole round
 * @last_num_old: of it
 * @last_num_swap: of it
 */
struct hints_scan {
	struct vbus_shm *tables;
	u32 num_tables;
	u64 num_pages;
	struct task_struct *thread;
	wait_queue_head_t wait;
	bool is_woken;
	u64 rate;
	u64 next;
	struct hints_disk disks[HINTS_MAX_DISKS];
	u32 num_disks;
	u32 num_slots;
	u64 num_rounds;
	u64 num_looks;
	u64 num_changes;
	u64 num_refused;
	u64 counts[HINTS_NUM_VERDICTS];
	u64 num_old;
	u64 num_swap;
	u64 last_counts[HINTS_NUM_VERDICTS];
	u64 last_num_old;
	u64 last_num_swap;
};

/* Folios that are given away at once. */
#define HINTS_EVICT_FOLIOS	64

/**
 * struct hints_evict - pages that the host has dropped; all of the event work
 * @folios: out of their caches, and ours alone
 * @num_folios: their number
 * @num_dropped: pages that the host says it dropped
 */
struct hints_evict {
	struct folio *folios[HINTS_EVICT_FOLIOS];
	u32 num_folios;
	u64 num_dropped;
};

/**
 * struct hints - a connection
 * @vdev: the bus's side
 * @features: HINTS_FEATURE_* that were negotiated
 * @release_bytes: of the smallest block that is worth releasing
 * @num_pages: of the guest's memory, as the host counts
 * @is_ending: nothing begins any more
 * @close_lock: held to close
 * @is_open: it is to be closed
 * @is_closed: the host has let go of everything
 * @release: blocks that are given away
 * @scan: what pages are worth
 * @evict: pages that the host has dropped
 * @events: ring of events
 * @event_work: looks at it
 * @num_events: events so far
 */
struct hints {
	struct vbus_device *vdev;
	u32 features;
	u32 release_bytes;
	u64 num_pages;
	bool is_ending;
	struct mutex close_lock;
	bool is_open;
	bool is_closed;
	struct hints_release release;
	struct hints_scan scan;
	struct hints_evict evict;
	struct vbus_ring *events;
	struct work_struct event_work;
	u64 num_events;
};

/* main.c */
struct vbus_ring *hints_ring_alloc(struct hints *hints, const char *what, u32 num_slots,
				   vbus_ring_notify notify);
void hints_close(struct hints *hints);

/* release.c */
void hints_release_init(struct hints *hints);
int hints_release_share(struct hints *hints);
void hints_release_register(struct hints *hints);
void hints_release_unregister(struct hints *hints);
void hints_release_now(struct hints *hints);
bool hints_release_begin(struct hints *hints);
void hints_release_block(struct hints *hints, u64 addr, u32 len, u8 kind);
int hints_release_end(struct hints *hints);

/* evict.c */
void hints_evict(struct hints *hints, u64 addr, u32 len);

/* scan.c */
void hints_scan_init(struct hints *hints);
int hints_scan_share(struct hints *hints);
void hints_scan_start(struct hints *hints);
void hints_scan_stop(struct hints *hints);
void hints_scan_free(struct hints *hints);
void hints_scan_set_rate(struct hints *hints, u64 rate);
enum hints_verdict hints_judge(struct folio *folio);

/* place.c */
struct inode *hints_hold_file(struct inode *inode);
void hints_let_go_of_file(struct inode *inode);
enum hints_verdict hints_find_place(struct hints *hints, struct folio *folio, pgoff_t nth,
				    u64 *place);

/* events.c */
int hints_events_share(struct hints *hints);
void hints_event_work(struct work_struct *work);

/* attributes.c */
extern const struct attribute_group *hints_groups[];

#endif /* HINTS_H */
