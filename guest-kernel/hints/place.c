// SPDX-License-Identifier: GPL-2.0
/*
 * Where the bytes of a page of the cache are on a disk.
 *
 * Nothing exported lists the disks. So one is told to the host when the scanner meets the first page
 * of it, by the serial number, which the driver of the disk shows in sysfs.
 */
#include <linux/blkdev.h>
#include <linux/fs.h>
#include <linux/kernfs.h>
#include <linux/magic.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/version.h>

#include "hints.h"

/*
 * Reads attribute "serial" of a disk that somebody has open, so that its driver stays. The number stays
 * empty if the disk has none. False if it has no such attribute.
 */
static bool hints_read_serial(struct gendisk *disk, u8 *serial)
{
	struct device *dev = disk_to_dev(disk);
	struct device_attribute *attr;
	struct kernfs_node *node;
	unsigned int flags;
	char *text, *number;

	/* A page is locked, and what waits for memory would wait for that. */
	flags = memalloc_noio_save();
	node = kernfs_find_and_get(dev->kobj.sd, "serial");
	if (!node) {
		memalloc_noio_restore(flags);
		return false;
	}
	text = (char *)get_zeroed_page(GFP_KERNEL);
	/* An attribute of a device, as all files of that directory. */
	attr = kernfs_type(node) == KERNFS_FILE ?
		       container_of(node->priv, struct device_attribute, attr) : NULL;
	if (text && attr && attr->show && attr->show(dev, attr, text) > 0) {
		number = strim(text);
		memcpy(serial, number, min_t(size_t, strlen(number), HINTS_SERIAL_BYTES));
	}
	free_page((unsigned long)text);
	kernfs_put(node);
	memalloc_noio_restore(flags);
	return true;
}

/* Slot of the disk, or 0 if the host does not know it. */
static u8 hints_disk_slot(struct hints *hints, struct gendisk *disk)
{
	struct hints_scan *scan = &hints->scan;
	struct hints_disk_data data = { .slot = scan->num_slots + 1 };
	struct hints_disk *entry;
	int ret = -ENOENT;

	/* Unlike addresses and numbers of devices these are never used again. */
	for (entry = scan->disks; entry < scan->disks + scan->num_disks; entry++)
		if (entry->diskseq == disk->diskseq)
			return entry->slot;
	if (scan->num_disks == ARRAY_SIZE(scan->disks) || scan->num_slots == HINTS_WORD_DISK_MAX ||
	    !hints_read_serial(disk, data.serial))
		return 0;
	if (data.serial[0])
		ret = vbus_call(hints->vdev, HINTS_FUNC_DISK, &data, sizeof(data));
	if (ret < 0 && ret != -ENOENT)
		return 0;
	scan->num_disks++;
	entry->diskseq = disk->diskseq;
	entry->slot = ret < 0 ? 0 : ++scan->num_slots;
	return entry->slot;
}

/* Place of @sector of a device that somebody has open; 0 if it has none that the host knows. */
static u64 hints_place_on(struct hints *hints, struct block_device *bdev, u64 sector)
{
	u64 slot = hints_disk_slot(hints, bdev->bd_disk);

	sector += bdev->bd_start_sect;
	if (!slot || sector > HINTS_WORD_SECTOR_MAX)
		return 0;
	return slot << HINTS_WORD_DISK_SHIFT | sector << HINTS_WORD_SECTOR_SHIFT;
}

/* Place of a page of a file; 0 if it is unknown. */
static u64 hints_place_in_file(struct hints *hints, struct inode *inode, pgoff_t index)
{
	u32 bits = inode->i_blkbits, num_blocks = PAGE_SIZE >> bits, nth;
	sector_t first = 0, block;

	/* Looking up a block would write the whole file back. */
	if (mapping_tagged(inode->i_mapping, PAGECACHE_TAG_DIRTY) ||
	    mapping_tagged(inode->i_mapping, PAGECACHE_TAG_WRITEBACK))
		return 0;
	/* It would also wait for whoever writes now. */
	if (!inode_trylock_shared(inode))
		return 0;
	inode_unlock_shared(inode);
	for (nth = 0; nth < num_blocks; nth++) {
		block = (sector_t)index * num_blocks + nth;
		if (bmap(inode, &block) || !block)
			return 0;
		if (!nth)
			first = block;
		else if (block != first + nth)
			return 0;
	}
	return hints_place_on(hints, inode->i_sb->s_bdev, first << (bits - SECTOR_SHIFT));
}

/* Where a folio of the swap cache is in its swap space, which is as the device or file is. */
static swp_entry_t hints_swap_entry(struct folio *folio)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
	return folio_swap_entry(folio);
#else
	return folio->swap;
#endif
}

/* Whether files have their bytes on the device as they are. */
static bool hints_is_plain(const struct inode *inode)
{
	const struct super_block *sb = inode->i_sb;

	return (sb->s_magic == EXT4_SUPER_MAGIC || sb->s_magic == XFS_SUPER_MAGIC) && sb->s_bdev &&
	       S_ISREG(inode->i_mode) && !IS_ENCRYPTED(inode) && !IS_DAX(inode) &&
	       inode->i_blkbits >= SECTOR_SHIFT && inode->i_blkbits <= PAGE_SHIFT;
}

/**
 * hints_hold_file - keeps a file, and its file system mounted and writable, for a moment
 * @inode: one of its pages is locked
 *
 * Nothing is waited for.
 *
 * Return: @inode if it can be held and has its bytes on a device as they are, or NULL. If it is not
 * NULL hints_let_go_of_file() must follow, when the page is unlocked.
 */
struct inode *hints_hold_file(struct inode *inode)
{
	struct super_block *sb = inode->i_sb;

	if (!hints_is_plain(inode) || !down_read_trylock(&sb->s_umount))
		return NULL;
	/* While it is frozen nobody may write, and iput() may. */
	if (sb->s_flags & SB_ACTIVE && sb->s_writers.frozen == SB_UNFROZEN && igrab(inode))
		return inode;
	up_read(&sb->s_umount);
	return NULL;
}

void hints_let_go_of_file(struct inode *inode)
{
	struct super_block *sb = inode->i_sb;

	iput(inode);
	up_read(&sb->s_umount);
}

/**
 * hints_find_place - finds where the bytes of a page are
 * @hints: started
 * @folio: its folio, clean, locked; unlocked on return
 * @nth: page of the folio
 * @place: out: disk and sector as in a word, or 0 if unknown
 *
 * Return: HINTS_VOLATILE, or why it is not
 */
enum hints_verdict hints_find_place(struct hints *hints, struct folio *folio, pgoff_t nth,
				    u64 *place)
{
	bool is_swap = folio_test_swapcache(folio);
	pgoff_t index = nth + (is_swap ? swp_offset(hints_swap_entry(folio)) : folio->index);
	struct address_space *mapping = is_swap ? swapcache_mapping(folio) : folio->mapping;
	struct inode *inode = mapping->host, *held;

	/*
	 * While a page of it is locked a device is not closed, a file system not unmounted, and swap
	 * space not given up.
	 */
	if (sb_is_blkdev_sb(inode->i_sb)) {
		*place = hints_place_on(hints, I_BDEV(inode),
					(u64)index << (PAGE_SHIFT - SECTOR_SHIFT));
		folio_unlock(folio);
		/* Swap space may be memory, compressed. */
		return *place || !is_swap ? HINTS_VOLATILE : HINTS_OTHER;
	}
	if (!hints_is_plain(inode)) {
		folio_unlock(folio);
		return HINTS_FILE_SYSTEM;
	}
	held = hints_hold_file(inode);
	folio_unlock(folio);
	if (!held)
		return HINTS_BUSY;
	*place = hints_place_in_file(hints, inode, index);
	hints_let_go_of_file(inode);
	return HINTS_VOLATILE;
}
