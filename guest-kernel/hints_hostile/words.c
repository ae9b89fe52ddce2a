// SPDX-License-Identifier: GPL-2.0
/* Words that are wrong in every way, written by all processors at once. */
#include <linux/blkdev.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/slab.h>

#include "hints_hostile.h"

/* Words that are written without a pause, and the pause in µs. */
#define LIAR_BURST	256
#define LIAR_PAUSE	2000

/* Kinds of words. */
#define LIAR_RANDOM	BIT(0)	/* any 64 bits */
#define LIAR_SECTORS	BIT(1)	/* volatile, somewhere on some disk */
#define LIAR_PAST	BIT(2)	/* volatile, on no disk or past the end of one */
#define LIAR_UNUSED	BIT(3)	/* unused, whatever it is */
#define LIAR_OTHERS	BIT(4)	/* where another page of the file is */
#define LIAR_TRUTH	BIT(5)	/* where this page of the file is, or was */
#define LIAR_NUM_KINDS	6

static const struct {
	const char *name;
	u32 kinds;
} liar_modes[] = {
	{ "random", LIAR_RANDOM },
	{ "sectors", LIAR_SECTORS },
	{ "past", LIAR_PAST },
	{ "unused", LIAR_UNUSED },
	{ "others", LIAR_OTHERS },
	{ "storm", BIT(LIAR_NUM_KINDS) - 1 },
};

u32 liar_kinds(const char *mode)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(liar_modes); i++)
		if (!strcmp(liar_modes[i].name, mode))
			return liar_modes[i].kinds;
	return 0;
}

/* Learns which pages the file at @path has in its cache, and where they are on its disk. */
int liar_find_places(struct liar *liar, const char *path)
{
	struct file *file = filp_open(path, O_RDONLY, 0);
	struct inode *inode;
	pgoff_t index, end;
	struct page *page;
	sector_t block;

	if (IS_ERR(file))
		return PTR_ERR(file);
	inode = file_inode(file);
	end = i_size_read(inode) >> PAGE_SHIFT;
	liar->places = kvcalloc(end, sizeof(*liar->places), GFP_KERNEL);
	for (index = 0; liar->places && index < end; index++) {
		page = find_get_page(inode->i_mapping, index);
		if (!page)
			continue;
		block = (sector_t)index << (PAGE_SHIFT - inode->i_blkbits);
		if (!bmap(inode, &block) && block)
			liar->places[liar->num_places++] = (struct liar_place){
				.pfn = page_to_pfn(page),
				.sector = block << (inode->i_blkbits - SECTOR_SHIFT),
			};
		put_page(page);
	}
	filp_close(file, NULL);
	if (!liar->places)
		return -ENOMEM;
	pr_info("hints_hostile: %u pages of %s\n", liar->num_places, path);
	return liar->num_places ? 0 : -ENODATA;
}

static void liar_write(struct liar *liar, u64 pfn, u64 word)
{
	__le64 *words;

	if (pfn >= liar->num_pages)
		return;
	words = liar->tables[pfn / HINTS_TABLE_PAGES].memory;
	WRITE_ONCE(words[pfn % HINTS_TABLE_PAGES], cpu_to_le64(word));
}

/* Age and sequence are random, and so is whether the page may be written to. */
static u64 liar_volatile(u64 random, u64 slot, u64 sector)
{
	u64 state = HINTS_PAGE_STATE_VOLATILE | (random & 1);
	u64 age = random & (HINTS_WORD_AGE_MAX << HINTS_WORD_AGE_SHIFT);
	u64 sequence = random & ~((1ULL << HINTS_WORD_SEQUENCE_SHIFT) - 1);

	return state | age | sequence | slot << HINTS_WORD_DISK_SHIFT |
	       (sector & HINTS_WORD_SECTOR_MAX) << HINTS_WORD_SECTOR_SHIFT;
}

static void liar_lie(struct liar *liar, struct rnd_state *state)
{
	u32 kind = BIT(prandom_u32_state(state) % LIAR_NUM_KINDS);
	u64 random = liar_random(state), pfn = liar_random(state) % liar->num_pages;
	const struct liar_place *place = NULL, *other = NULL;
	u32 disk;

	if (!(kind & liar->kinds))
		return;
	if (liar->num_places) {
		place = &liar->places[random % liar->num_places];
		other = &liar->places[(random >> 32) % liar->num_places];
	}
	switch (kind) {
	case LIAR_RANDOM:
		liar_write(liar, pfn, random);
		break;
	case LIAR_SECTORS:
		if (!liar->num_disks)
			break;
		disk = random % liar->num_disks;
		liar_write(liar, pfn, liar_volatile(random, disk + 1,
						    liar_random(state) % liar->num_sectors[disk]));
		break;
	case LIAR_PAST:
		disk = random % (HINTS_WORD_DISK_MAX + 1);
		liar_write(liar, pfn, liar_volatile(random, disk,
						    HINTS_WORD_SECTOR_MAX - random % 4096));
		break;
	case LIAR_UNUSED:
		liar_write(liar, pfn, HINTS_PAGE_STATE_UNUSED);
		break;
	case LIAR_OTHERS:
		if (place)
			liar_write(liar, place->pfn, liar_volatile(random, 1, other->sector));
		break;
	case LIAR_TRUTH:
		if (place)
			liar_write(liar, place->pfn, liar_volatile(random, 1, place->sector));
		break;
	}
}

struct liar_teller {
	struct liar *liar;
	struct rnd_state random;
};

static int liar_thread(void *context)
{
	struct liar_teller *teller = context;
	int i;

	while (!kthread_should_stop()) {
		for (i = 0; i < LIAR_BURST; i++)
			liar_lie(teller->liar, &teller->random);
		usleep_range(LIAR_PAUSE, 2 * LIAR_PAUSE);
	}
	kfree(teller);
	return 0;
}

void liar_begin(struct liar *liar, ulong seed)
{
	struct liar_teller *teller;
	struct task_struct *thread;
	int cpu;

	for_each_online_cpu(cpu) {
		teller = kzalloc(sizeof(*teller), GFP_KERNEL);
		if (!teller)
			continue;
		teller->liar = liar;
		prandom_seed_state(&teller->random, seed + cpu);
		thread = kthread_create_on_cpu(liar_thread, teller, cpu, "liar/%u");
		if (IS_ERR(thread)) {
			kfree(teller);
			continue;
		}
		liar->threads[cpu] = thread;
		/* Started: one that is stopped before never runs, and frees nothing. */
		wake_up_process(thread);
	}
}

void liar_end(struct liar *liar)
{
	int cpu;

	for (cpu = 0; cpu < nr_cpu_ids; cpu++)
		if (liar->threads[cpu])
			kthread_stop(liar->threads[cpu]);
}
