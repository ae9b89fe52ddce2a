// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that the host has dropped are removed from their cache and given away.
 *
 * The cache would not lose much: who reads such a page waits for a disk in any case. But whoever got the
 * frame for something else would wait too, until the host has read bytes that nobody wants any more.
 */
#include <linux/fs.h>
#include <linux/log2.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/pagemap.h>
#include <linux/version.h>

#include "hints.h"

static bool evict_dropped = true;
module_param(evict_dropped, bool, 0644);
MODULE_PARM_DESC(evict_dropped, "remove pages that the host has dropped from their caches (Y)");

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
static int generic_error_remove_folio(struct address_space *mapping, struct folio *folio)
{
	return generic_error_remove_page(mapping, &folio->page);
}
#endif

/*
 * Removes a clean folio from its cache; its lock is held, and our reference. True if it is ours alone:
 * whoever found it in the cache before has a reference, and nobody finds it any more.
 */
static bool hints_remove_folio(struct address_space *mapping, struct folio *folio)
{
	/* Buffers of a journal may have to stay. */
	if (folio_has_private(folio) && !filemap_release_folio(folio, GFP_NOWAIT))
		return false;
	if (folio_ref_count(folio) != folio_nr_pages(folio) + 1)
		return false;
	/* It is neither mapped nor dirty, and has no buffers: this only takes it out. */
	return !generic_error_remove_folio(mapping, folio) && folio_ref_count(folio) == 1;
}

/* Takes a folio, of which we have a reference, away from its file; true if it is ours alone. */
static bool hints_evict_folio(struct folio *folio)
{
	struct inode *inode = NULL;
	bool is_ours = false;
	enum hints_verdict verdict;

	if (!folio_trylock(folio))
		return false;
	verdict = hints_judge(folio);
	if ((verdict == HINTS_VOLATILE || verdict == HINTS_MAYBE_VOLATILE) &&
	    !folio_test_swapcache(folio) && !folio_mapped(folio))
		inode = hints_hold_file(folio->mapping->host);
	if (inode)
		is_ours = hints_remove_folio(inode->i_mapping, folio);
	folio_unlock(folio);
	if (inode)
		hints_let_go_of_file(inode);
	return is_ours;
}

/* Gives away the frames that are ours, and then frees them. */
static void hints_evict_flush(struct hints *hints)
{
	struct hints_evict *evict = &hints->evict;
	u32 nth = 0;

	if (!evict->num_folios)
		return;
	if (hints_release_begin(hints)) {
		while (nth < evict->num_folios) {
			u64 first = folio_pfn(evict->folios[nth]), end = first;

			while (nth < evict->num_folios && folio_pfn(evict->folios[nth]) == end)
				end += folio_nr_pages(evict->folios[nth++]);
			/* As few blocks as the rules allow: no more than there are folios. */
			while (first < end) {
				u32 order = min_t(u32, ilog2(HINTS_MAX_RELEASE_BYTES / PAGE_SIZE),
						  ilog2(end - first));

				if (first)
					order = min_t(u32, order, __ffs64(first));
				hints_release_block(hints, first << PAGE_SHIFT, PAGE_SIZE << order,
						    HINTS_RELEASE_KIND_EVICTED);
				first += 1ULL << order;
			}
		}
		hints_release_end(hints);
	}
	for (nth = 0; nth < evict->num_folios; nth++)
		folio_put(evict->folios[nth]);
	evict->num_folios = 0;
}

/* Takes the folio of @pfn, if all of it is before @end; returns the page to go on with. */
static u64 hints_evict_at(struct hints *hints, u64 pfn, u64 end)
{
	struct hints_evict *evict = &hints->evict;
	struct page *page = pfn_to_online_page(pfn);
	u64 next = pfn + 1;
	struct folio *folio;

	folio = page ? page_folio(page) : NULL;
	/* As the scanner: nothing but pages of files. */
	if (!folio || !folio_test_lru(folio) || folio_test_swapbacked(folio) ||
	    !folio_try_get(folio))
		return next;
	if (page_folio(page) == folio && folio_test_lru(folio) && folio_pfn(folio) == pfn &&
	    pfn + folio_nr_pages(folio) <= end) {
		next = pfn + folio_nr_pages(folio);
		if (hints_evict_folio(folio)) {
			evict->folios[evict->num_folios++] = folio;
			return next;
		}
	}
	folio_put(folio);
	return next;
}

/**
 * hints_evict - removes pages that the host has dropped from their caches, where nobody uses them
 * @hints: started; the caller is its event work
 * @addr: of the first byte, as the host said
 * @len: bytes, as the host said
 */
void hints_evict(struct hints *hints, u64 addr, u32 len)
{
	struct hints_evict *evict = &hints->evict;
	u64 pfn = addr >> PAGE_SHIFT, end;

	end = min_t(u64, pfn + (len >> PAGE_SHIFT), hints->num_pages);
	evict->num_dropped += pfn < end ? end - pfn : 0;
	while (pfn < end && READ_ONCE(evict_dropped) && !READ_ONCE(hints->is_ending)) {
		pfn = hints_evict_at(hints, pfn, end);
		if (evict->num_folios == HINTS_EVICT_FOLIOS) {
			hints_evict_flush(hints);
			cond_resched();
		}
	}
	hints_evict_flush(hints);
}
