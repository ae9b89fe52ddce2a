// SPDX-License-Identifier: GPL-2.0
/*
 * The scanner: walks all pages and says which have the same bytes as a disk.
 *
 * It looks and changes nothing but the mark of use: no list, no file. Where anything is in the way the
 * page is left for the next round. What it says may be wrong a moment later, and the host knows that.
 */
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/nodemask.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "hints.h"

/* A turn of work without sleep: so much time, or so many pages. */
#define HINTS_TURN_NS		(4 * NSEC_PER_MSEC)
#define HINTS_TURN_PAGES	4096
/* The clock is read once for so many pages. */
#define HINTS_TURN_CHECK_PAGES	64
#define HINTS_MAX_SLEEP_NS	(3600 * NSEC_PER_SEC)

static unsigned int scan_cpu_permille = 10;
module_param(scan_cpu_permille, uint, 0644);
MODULE_PARM_DESC(scan_cpu_permille, "most time of one processor that the scanner takes, in thousandths (10)");

static unsigned int max_scan_rate = 100000;
module_param(max_scan_rate, uint, 0644);
MODULE_PARM_DESC(max_scan_rate, "most pages that the scanner looks at in a second; the host may want less (100000)");

static unsigned int scan_round_ms = 10000;
module_param(scan_round_ms, uint, 0644);
MODULE_PARM_DESC(scan_round_ms, "least milliseconds from round to round; a page that is not used grows older by one with each (10000)");

static_assert(PAGE_SIZE == HINTS_PAGE_BYTES);

/* First page after all memory of the guest. */
static u64 hints_end_of_ram(void)
{
	u64 end = 0;
	int node;

	for_each_online_node(node)
		end = max_t(u64, end, node_end_pfn(node));
	return end;
}

static __le64 *hints_word(struct hints_scan *scan, u64 pfn)
{
	__le64 *words = scan->tables[pfn / HINTS_TABLE_PAGES].memory;

	return &words[pfn % HINTS_TABLE_PAGES];
}

int hints_scan_share(struct hints *hints)
{
	struct hints_scan *scan = &hints->scan;
	u64 first;
	u32 nth;
	int err;

	scan->num_pages = min(hints->num_pages, hints_end_of_ram());
	scan->num_tables = DIV_ROUND_UP_ULL(scan->num_pages, HINTS_TABLE_PAGES);
	scan->tables = kvcalloc(scan->num_tables, sizeof(*scan->tables), GFP_KERNEL);
	if (!scan->tables)
		return -ENOMEM;
	for (nth = 0; nth < scan->num_tables; nth++) {
		first = (u64)nth * HINTS_TABLE_PAGES;
		err = vbus_shm_alloc(&scan->tables[nth],
				     min_t(u64, scan->num_pages - first, HINTS_TABLE_PAGES) *
					     sizeof(__le64));
		if (!err)
			err = vbus_shm_share(hints->vdev, &scan->tables[nth],
					     HINTS_SHM_ID_TABLE + nth);
		if (err)
			return err;
	}
	return 0;
}

void hints_scan_free(struct hints *hints)
{
	struct hints_scan *scan = &hints->scan;
	u32 nth;

	for (nth = 0; scan->tables && nth < scan->num_tables; nth++)
		vbus_shm_free(&scan->tables[nth]);
	kvfree(scan->tables);
	scan->tables = NULL;
}

/*
 * Says what the page is worth: @word has its state and where its bytes are. The host may have made the
 * word stable, leaving the rest: then it found it wrong, and the page gets a rest until the next round.
 */
static void hints_publish(struct hints_scan *scan, u64 pfn, u64 word, bool is_used)
{
	__le64 *at = hints_word(scan, pfn);
	u64 old = le64_to_cpu(READ_ONCE(*at));
	bool is_refused = !(old & HINTS_WORD_STATE_MASK) && old & HINTS_WORD_PLACE_MASK;
	u64 age = (old >> HINTS_WORD_AGE_SHIFT) & HINTS_WORD_AGE_MAX;

	if (is_refused) {
		scan->num_refused++;
		word = 0;
	} else if (word && !((word ^ old) & HINTS_WORD_PLACE_MASK) && !is_used) {
		if (old & HINTS_WORD_STATE_MASK && age < HINTS_WORD_AGE_MAX)
			age++;
		word |= age << HINTS_WORD_AGE_SHIFT;
		scan->num_old += age == HINTS_WORD_AGE_MAX;
	}
	if (!((word ^ old) & HINTS_WORD_CONTENT_MASK))
		return;
	word |= (old + (1ULL << HINTS_WORD_SEQUENCE_SHIFT)) & ~HINTS_WORD_CONTENT_MASK;
	/* If it fails the host was faster, and the next round sees why. */
	if (cmpxchg(at, cpu_to_le64(old), cpu_to_le64(word)) == cpu_to_le64(old))
		scan->num_changes++;
}

/**
 * hints_judge - tells what is wrong with a folio of a cache
 * @folio: locked
 *
 * Return: HINTS_VOLATILE or HINTS_MAYBE_VOLATILE, or why a disk does not have the same bytes
 */
enum hints_verdict hints_judge(struct folio *folio)
{
	struct address_space *mapping = folio->mapping;
	bool is_swap = folio_test_swapcache(folio);

	if (!is_swap && (!mapping || (unsigned long)mapping & PAGE_MAPPING_FLAGS ||
			 folio_test_swapbacked(folio)))
		return HINTS_OTHER;
	if (!folio_test_uptodate(folio) || folio_test_dirty(folio) || folio_test_writeback(folio))
		return HINTS_DIRTY;
	if (folio_test_mlocked(folio) || folio_test_unevictable(folio) ||
	    folio_maybe_dma_pinned(folio) || (!is_swap && mapping_unevictable(mapping)))
		return HINTS_PINNED;
	if (is_swap ? folio_mapped(folio) : mapping_writably_mapped(mapping))
		return HINTS_MAYBE_VOLATILE;
	return HINTS_VOLATILE;
}

/*
 * Whether somebody used a folio since the last look. Without memory pressure nobody else clears the mark
 * of those who read a file. It is not known when mapped pages are used.
 */
static bool hints_is_used(struct folio *folio)
{
	return folio_test_clear_referenced(folio) || folio_mapped(folio);
}

static enum hints_verdict hints_look_at_folio(struct hints *hints, struct folio *folio, pgoff_t nth,
					      u64 *place)
{
	enum hints_verdict verdict, found;

	if (!folio_trylock(folio))
		return HINTS_BUSY;
	verdict = hints_judge(folio);
	if (verdict != HINTS_VOLATILE && verdict != HINTS_MAYBE_VOLATILE) {
		folio_unlock(folio);
		return verdict;
	}
	found = hints_find_place(hints, folio, nth, place);
	return found == HINTS_VOLATILE ? verdict : found;
}

/* Looks at a page and publishes what it is worth; false if there is no such page. */
static bool hints_look_at(struct hints *hints, u64 pfn)
{
	struct hints_scan *scan = &hints->scan;
	struct page *page = pfn_to_online_page(pfn);
	enum hints_verdict verdict = HINTS_OTHER;
	bool is_used = false, is_swap = false;
	struct folio *folio;
	u64 word = 0;

	if (!page) {
		hints_publish(scan, pfn, 0, false);
		return false;
	}
	folio = page_folio(page);
	/* A reference to what is in no list could be in the way of its owner. */
	if (folio_test_lru(folio) &&
	    (!folio_test_swapbacked(folio) || folio_test_swapcache(folio))) {
		if (!folio_try_get(folio)) {
			verdict = HINTS_BUSY;
		} else {
			if (page_folio(page) == folio && folio_test_lru(folio)) {
				verdict = hints_look_at_folio(hints, folio,
							      folio_page_idx(folio, page), &word);
				is_used = hints_is_used(folio);
				is_swap = folio_test_swapcache(folio);
			}
			folio_put(folio);
		}
	}
	scan->counts[verdict]++;
	if (verdict == HINTS_VOLATILE)
		word |= HINTS_PAGE_STATE_VOLATILE;
	else if (verdict == HINTS_MAYBE_VOLATILE)
		word |= HINTS_PAGE_STATE_MAYBE_VOLATILE;
	else
		word = 0;
	scan->num_swap += word && is_swap;
	hints_publish(scan, pfn, word, is_used);
	return true;
}

/* Works for a turn; returns the number of pages that it looked at. */
static u32 hints_scan_turn(struct hints *hints, u64 begin)
{
	struct hints_scan *scan = &hints->scan;
	u32 num_steps = 0, num_pages = 0;

	while (scan->next < scan->num_pages && num_pages < HINTS_TURN_PAGES) {
		num_pages += hints_look_at(hints, scan->next++);
		if (++num_steps % HINTS_TURN_CHECK_PAGES)
			continue;
		if (READ_ONCE(hints->is_ending) || ktime_get_ns() - begin > HINTS_TURN_NS)
			break;
		cond_resched();
	}
	scan->num_looks += num_pages;
	return num_pages;
}

/* How long a turn, which took @busy, must be followed by sleep. */
static u64 hints_sleep_ns(struct hints_scan *scan, u64 busy, u32 num_pages)
{
	u64 permille = clamp(READ_ONCE(scan_cpu_permille), 1U, 1000U);
	u64 rate = min_t(u64, READ_ONCE(scan->rate), READ_ONCE(max_scan_rate));

	if (!rate)
		return HINTS_MAX_SLEEP_NS;
	return clamp_t(u64, num_pages * NSEC_PER_SEC / rate, busy * 1000 / permille - busy,
		       HINTS_MAX_SLEEP_NS);
}

static int hints_scan_thread(void *context)
{
	struct hints *hints = context;
	struct hints_scan *scan = &hints->scan;
	u64 begin, round_begin = ktime_get_ns(), round, sleep;
	u32 num_pages;

	set_user_nice(current, MAX_NICE);
	while (!kthread_should_stop()) {
		WRITE_ONCE(scan->is_woken, false);
		smp_mb(); /* before the look at the rate; pairs with wake_up() */
		begin = ktime_get_ns();
		num_pages = 0;
		if (min_t(u64, READ_ONCE(scan->rate), READ_ONCE(max_scan_rate)))
			num_pages = hints_scan_turn(hints, begin);
		sleep = hints_sleep_ns(scan, ktime_get_ns() - begin, num_pages);
		if (scan->next == scan->num_pages) {
			memcpy(scan->last_counts, scan->counts, sizeof(scan->counts));
			memset(scan->counts, 0, sizeof(scan->counts));
			scan->last_num_old = scan->num_old;
			scan->last_num_swap = scan->num_swap;
			scan->num_old = 0;
			scan->num_swap = 0;
			scan->next = 0;
			scan->num_rounds++;
			begin = ktime_get_ns();
			round = (u64)READ_ONCE(scan_round_ms) * NSEC_PER_MSEC;
			if (begin - round_begin < round)
				sleep = max(sleep, round - (begin - round_begin));
			round_begin = begin + sleep;
		}
		wait_event_idle_timeout(scan->wait,
					kthread_should_stop() || READ_ONCE(scan->is_woken),
					nsecs_to_jiffies(sleep) + 1);
	}
	return 0;
}

void hints_scan_init(struct hints *hints)
{
	init_waitqueue_head(&hints->scan.wait);
	hints->scan.rate = U64_MAX;
}

/* The host wants so many pages in a second: the scanner goes on at once. */
void hints_scan_set_rate(struct hints *hints, u64 rate)
{
	WRITE_ONCE(hints->scan.rate, rate);
	WRITE_ONCE(hints->scan.is_woken, true);
	wake_up(&hints->scan.wait);
}

void hints_scan_start(struct hints *hints)
{
	struct task_struct *thread;

	thread = kthread_run(hints_scan_thread, hints, "%s-scan", dev_name(&hints->vdev->dev));
	if (IS_ERR(thread))
		dev_err(&hints->vdev->dev, "no scanner: %ld\n", PTR_ERR(thread));
	else
		hints->scan.thread = thread;
}

void hints_scan_stop(struct hints *hints)
{
	if (hints->scan.thread)
		kthread_stop(hints->scan.thread);
	hints->scan.thread = NULL;
}
