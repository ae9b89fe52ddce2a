// SPDX-License-Identifier: GPL-2.0
/* What a driver of a virtio device does, by the rules. */
#include <linux/delay.h>
#include <linux/if_ether.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "targets.h"

/* A frame's header with all that a modern device has. */
#define NET_HEADER_BYTES	12
#define NET_TX_QUEUE		1
#define RNG_BYTES		64
#define BLK_SECTOR_BYTES	512

void targets_write(void __iomem *place, u64 value, u32 len)
{
	switch (len) {
	case 1:
		writeb(value, place);
		break;
	case 2:
		writew(value, place);
		break;
	case 4:
		writel(value, place);
		break;
	default:
		writeq(value, place);
		break;
	}
}

u64 target_addr(const struct target *target, u32 offset)
{
	return virt_to_phys(target->area) + offset;
}

void *target_queue(const struct target *target, u32 queue)
{
	return target->area + TARGET_QUEUE(queue);
}

u8 target_status(const struct target *target)
{
	return readb(target->registers + VIRTIO_PCI_COMMON_STATUS);
}

u32 target_num_queues(const struct target *target)
{
	u32 num = readw(target->registers + VIRTIO_PCI_COMMON_NUMQ);

	return clamp_t(u32, num, 1, TARGET_MAX_QUEUES);
}

u32 target_request_queue(const struct target *target)
{
	return target->kind == VIRTIO_ID_NET ? NET_TX_QUEUE : 0;
}

void target_reset(struct target *target)
{
	writeb(0, target->registers + VIRTIO_PCI_COMMON_STATUS);
}

void target_notify(struct target *target, u32 queue)
{
	writew(queue, target->registers + TARGET_NOTIFY + 4 * queue);
}

void target_publish(struct target *target, u32 queue, u16 num)
{
	struct vring_avail *avail = target_queue(target, queue) + TARGET_AVAIL;
	u16 idx = le16_to_cpu(READ_ONCE(avail->idx));

	smp_store_release(&avail->idx, cpu_to_le16(idx + num));
}

static void write_addr(struct target *target, u32 offset, u64 addr)
{
	writel(lower_32_bits(addr), target->registers + offset);
	writel(upper_32_bits(addr), target->registers + offset + sizeof(u32));
}

static void set_up_queue(struct target *target, u32 idx)
{
	void __iomem *registers = target->registers;
	u64 addr = target_addr(target, TARGET_QUEUE(idx));

	memset(target_queue(target, idx), 0, PAGE_SIZE);
	writew(idx, registers + VIRTIO_PCI_COMMON_Q_SELECT);
	writew(TARGET_QUEUE_SIZE, registers + VIRTIO_PCI_COMMON_Q_SIZE);
	write_addr(target, VIRTIO_PCI_COMMON_Q_DESCLO, addr);
	write_addr(target, VIRTIO_PCI_COMMON_Q_AVAILLO, addr + TARGET_AVAIL);
	write_addr(target, VIRTIO_PCI_COMMON_Q_USEDLO, addr + TARGET_USED);
	writew(1, registers + VIRTIO_PCI_COMMON_Q_ENABLE);
}

static u64 offered_features(const struct target *target)
{
	u64 features;

	writel(1, target->registers + VIRTIO_PCI_COMMON_DFSELECT);
	features = (u64)readl(target->registers + VIRTIO_PCI_COMMON_DF) << 32;
	writel(0, target->registers + VIRTIO_PCI_COMMON_DFSELECT);
	return features | readl(target->registers + VIRTIO_PCI_COMMON_DF);
}

static void accept_features(struct target *target, u64 features)
{
	writel(0, target->registers + VIRTIO_PCI_COMMON_GFSELECT);
	writel(lower_32_bits(features), target->registers + VIRTIO_PCI_COMMON_GF);
	writel(1, target->registers + VIRTIO_PCI_COMMON_GFSELECT);
	writel(upper_32_bits(features), target->registers + VIRTIO_PCI_COMMON_GF);
}

int target_start(struct target *target, u64 features)
{
	void __iomem *status = target->registers + VIRTIO_PCI_COMMON_STATUS;
	u32 num_queues, i;

	target_reset(target);
	writeb(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER, status);
	accept_features(target, (offered_features(target) & features) | BIT_ULL(VIRTIO_F_VERSION_1));
	writeb(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK,
	       status);
	num_queues = target_num_queues(target);
	for (i = 0; i < num_queues; i++)
		set_up_queue(target, i);
	writeb(TARGET_STATUS_GOOD, status);
	return target_status(target) == TARGET_STATUS_GOOD ? 0 : -EIO;
}

/* What a good request begins with, for all but a disk. */
static void set_header(struct target *target)
{
	/* Who has 10.213.0.1, which is the host? Tell 10.213.0.2. */
	static const u8 request[] = {
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0xa7, 0xac, 2, 8, 6,
		0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0xa7, 0xac, 2, 10, 213, 0, 2,
		0, 0, 0, 0, 0, 0, 10, 213, 0, 1,
	};
	void *header = target->area + TARGET_HEADER;
	__le32 *page = header;
	int i;

	memset(header, 0, PAGE_SIZE);
	switch (target->kind) {
	case VIRTIO_ID_NET:
		memcpy(header + NET_HEADER_BYTES, request, sizeof(request));
		break;
	case VIRTIO_ID_BALLOON:
		for (i = 0; i < PAGE_SIZE / sizeof(*page); i++)
			page[i] = cpu_to_le32(target_addr(target, TARGET_SPARE) >> PAGE_SHIFT);
		break;
	}
}

void target_fill(struct target *target, struct rnd_state *random)
{
	u64 *words = target->area;
	int i;

	prandom_bytes_state(random, target->area, TARGET_AREA_BYTES);
	for (i = 0; i < TARGET_AREA_BYTES / sizeof(*words); i++)
		words[i] |= 0x8080808080808080ULL;
	set_header(target);
}

/* The first descriptors are the good request of a device. */
static void make_request(struct target *target, struct vring_desc *desc)
{
	struct virtio_blk_outhdr *header = target->area + TARGET_HEADER;
	static const struct {
		u32 offset;
		u32 len;
		u16 flags;
	} parts[][3] = {
		[VIRTIO_ID_NET] = { { TARGET_HEADER, NET_HEADER_BYTES + ETH_ZLEN, 0 } },
		[VIRTIO_ID_BLOCK] = { { TARGET_HEADER, sizeof(*header), 0 },
				      { TARGET_DATA, BLK_SECTOR_BYTES, VRING_DESC_F_WRITE },
				      { TARGET_DATA + BLK_SECTOR_BYTES, 1, VRING_DESC_F_WRITE } },
		[VIRTIO_ID_RNG] = { { TARGET_DATA, RNG_BYTES, VRING_DESC_F_WRITE } },
		[VIRTIO_ID_BALLOON] = { { TARGET_HEADER, sizeof(__le32), 0 } },
	};
	int i;

	if (target->kind == VIRTIO_ID_BLOCK)
		*header = (struct virtio_blk_outhdr){ .type = cpu_to_le32(VIRTIO_BLK_T_IN) };
	for (i = 0; i < ARRAY_SIZE(parts[0]) && parts[target->kind][i].len; i++) {
		desc[i].addr = cpu_to_le64(target_addr(target, parts[target->kind][i].offset));
		desc[i].len = cpu_to_le32(parts[target->kind][i].len);
		desc[i].flags = cpu_to_le16(parts[target->kind][i].flags | VRING_DESC_F_NEXT);
		desc[i].next = cpu_to_le16(i + 1);
	}
	desc[i - 1].flags &= ~cpu_to_le16(VRING_DESC_F_NEXT);
}

int target_serve(struct target *target)
{
	u32 queue = target_request_queue(target);
	struct vring_desc *desc = target_queue(target, queue);
	struct vring_used *used = target_queue(target, queue) + TARGET_USED;
	u8 *data = target->area + TARGET_DATA;
	unsigned long end = jiffies + HOSTILE_PATIENCE;
	int status = target_start(target, 0);

	if (status)
		return status;
	set_header(target);
	make_request(target, desc);
	memset(data, 0xee, PAGE_SIZE);
	target_publish(target, queue, 1);
	target_notify(target, queue);
	while (!smp_load_acquire(&used->idx)) {
		if (time_after(jiffies, end))
			return -ETIME;
		usleep_range(100, 200);
	}
	if (target_status(target) != TARGET_STATUS_GOOD || used->idx != cpu_to_le16(1))
		return -EPROTO;
	if (target->kind == VIRTIO_ID_RNG && !memchr_inv(data, 0xee, RNG_BYTES))
		return -ENODATA;
	if (target->kind == VIRTIO_ID_BLOCK && data[BLK_SECTOR_BYTES] != VIRTIO_BLK_S_OK)
		return -EREMOTEIO;
	return 0;
}
