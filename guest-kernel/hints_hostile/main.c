// SPDX-License-Identifier: GPL-2.0
/*
 * insmod hints_hostile.ko mode=storm path=/mnt/data disks=files,other seed=1
 *
 * Needs the device for itself: unload hints first. After a mode that gets it cut off, vbus_pci has to
 * be loaded again.
 */
#include <linux/module.h>
#include <linux/slab.h>

#include <alacrity/vbus_ring.h>

#include "hints_hostile.h"

#define LIAR_RING_SLOTS	64

static char *mode = "storm";
module_param(mode, charp, 0444);
MODULE_PARM_DESC(mode, "what to do, see words.c and blocks.c");
static ulong seed = 1;
module_param(seed, ulong, 0444);
MODULE_PARM_DESC(seed, "where the random numbers begin");
static char *path;
module_param(path, charp, 0444);
MODULE_PARM_DESC(path, "file on the first disk, whose pages and sectors are told of each other");
static char *disks[LIAR_MAX_DISKS];
static int num_disks;
module_param_array(disks, charp, &num_disks, 0444);
MODULE_PARM_DESC(disks, "serial numbers");

static void liar_ignore(struct vbus_ring *ring, void *context)
{
}

u64 liar_random(struct rnd_state *state)
{
	return (u64)prandom_u32_state(state) << 32 | prandom_u32_state(state);
}

static int liar_share_ring(struct liar *liar, struct vbus_ring **ring, const char *name, u32 id)
{
	*ring = vbus_ring_alloc(LIAR_RING_SLOTS, name, liar_ignore, liar);
	if (IS_ERR(*ring))
		return PTR_ERR(*ring);
	return vbus_ring_share(liar->vdev, *ring, id, 0);
}

static int liar_share_tables(struct liar *liar)
{
	u32 nth;
	int ret = 0;

	liar->num_tables = DIV_ROUND_UP_ULL(liar->num_pages, HINTS_TABLE_PAGES);
	liar->tables = kcalloc(liar->num_tables, sizeof(*liar->tables), GFP_KERNEL);
	if (!liar->tables)
		return -ENOMEM;
	for (nth = 0; nth < liar->num_tables && !ret; nth++) {
		u64 first = (u64)nth * HINTS_TABLE_PAGES;
		u64 num = min_t(u64, liar->num_pages - first, HINTS_TABLE_PAGES);

		ret = vbus_shm_alloc(&liar->tables[nth], num * sizeof(__le64));
		if (!ret)
			ret = vbus_shm_share(liar->vdev, &liar->tables[nth],
					     HINTS_SHM_ID_TABLE + nth);
	}
	return ret;
}

static int liar_name_disks(struct liar *liar)
{
	int ret, i;

	for (i = 0; i < num_disks; i++) {
		struct hints_disk_data data = { .slot = i + 1 };

		memcpy(data.serial, disks[i], min_t(size_t, strlen(disks[i]), HINTS_SERIAL_BYTES));
		ret = vbus_call(liar->vdev, HINTS_FUNC_DISK, &data, sizeof(data));
		if (ret < 0)
			return ret;
		liar->num_sectors[liar->num_disks++] = le64_to_cpu(data.num_sectors);
	}
	return 0;
}

static int liar_connect(struct liar *liar)
{
	struct hints_hello_data hello = {
		.features = cpu_to_le32(HINTS_FEATURE_RELEASE | HINTS_FEATURE_TABLE),
	};
	int ret = vbus_open(liar->vdev, HINTS_VERSION);

	if (!ret)
		ret = vbus_call(liar->vdev, HINTS_FUNC_HELLO, &hello, sizeof(hello));
	if (ret < 0)
		return ret;
	liar->num_pages = le64_to_cpu(hello.num_pages);
	liar->release_bytes = le32_to_cpu(hello.release_bytes);
	ret = liar_share_ring(liar, &liar->events, "liar-events", HINTS_SHM_ID_EVENT_RING);
	if (!ret)
		ret = liar_share_ring(liar, &liar->release, "liar-release",
				      HINTS_SHM_ID_RELEASE_RING);
	if (!ret)
		ret = liar_share_tables(liar);
	if (!ret)
		ret = liar_name_disks(liar);
	if (!ret)
		ret = vbus_call(liar->vdev, HINTS_FUNC_START, NULL, 0);
	return ret < 0 ? ret : 0;
}

/* After this the host knows no memory of ours. */
static void liar_free(struct liar *liar)
{
	u32 nth;

	vbus_close(liar->vdev);
	vbus_ring_free(liar->release);
	vbus_ring_free(liar->events);
	for (nth = 0; liar->tables && nth < liar->num_tables; nth++)
		vbus_shm_free(&liar->tables[nth]);
	kfree(liar->tables);
	kvfree(liar->places);
	kfree(liar);
}

static int liar_probe(struct vbus_device *vdev)
{
	struct liar *liar = kzalloc(sizeof(*liar), GFP_KERNEL);
	int ret;

	if (!liar)
		return -ENOMEM;
	liar->vdev = vdev;
	prandom_seed_state(&liar->random, seed);
	vbus_set_drvdata(vdev, liar);
	ret = liar_connect(liar);
	if (!ret && path)
		ret = liar_find_places(liar, path);
	if (ret) {
		pr_err("hints_hostile: cannot connect: %d\n", ret);
		goto free;
	}
	liar->kinds = liar_kinds(mode);
	if (liar->kinds) {
		liar_begin(liar, seed);
		return 0;
	}
	/* Over when it returns: nothing is left to hold. */
	ret = liar_attack(liar, mode) ? -ENXIO : -EINVAL;
free:
	liar_free(liar);
	return ret;
}

static void liar_remove(struct vbus_device *vdev)
{
	struct liar *liar = vbus_get_drvdata(vdev);

	liar_end(liar);
	liar_free(liar);
}

static struct vbus_driver liar_driver = {
	.kind = HINTS_KIND,
	.probe = liar_probe,
	.remove = liar_remove,
};
module_vbus_driver(liar_driver);

MODULE_DESCRIPTION("Gives the host wrong page hints, for tests");
MODULE_LICENSE("GPL");
