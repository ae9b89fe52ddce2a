// SPDX-License-Identifier: GPL-2.0
/* Settings and statistics for ethtool. */
#include <linux/ethtool.h>
#include <linux/log2.h>
#include <linux/rtnetlink.h>

#include "venet.h"

#define VENET_TX_STAT(name)	{ #name, offsetof(struct venet_tx_stats, name) }
#define VENET_RX_STAT(name)	{ #name, offsetof(struct venet_rx_stats, name) }
#define VENET_COUNTER(text, field)	{ text, offsetof(struct venet, field) }

struct venet_stat {
	const char *name;
	size_t offset;
};

static const struct venet_stat venet_tx_stats[] = {
	VENET_TX_STAT(batches),
	VENET_TX_STAT(doorbells),
	VENET_TX_STAT(scattered),
	VENET_TX_STAT(linearized),
	VENET_TX_STAT(ring_full),
	VENET_TX_STAT(notify_requests),
	VENET_TX_STAT(timeouts),
};

static const struct venet_stat venet_rx_stats[] = {
	VENET_RX_STAT(slots),
	VENET_RX_STAT(empty),
	VENET_RX_STAT(copied),
	VENET_RX_STAT(merged),
	VENET_RX_STAT(gso),
	VENET_RX_STAT(no_memory),
	VENET_RX_STAT(doorbells),
};

static const struct venet_stat venet_counters[] = {
	VENET_COUNTER("tx_interrupts", tx.num_interrupts),
	VENET_COUNTER("rx_interrupts", rx.num_interrupts),
	VENET_COUNTER("event_interrupts", num_event_interrupts),
	VENET_COUNTER("resets", num_resets),
};

#define VENET_NUM_STATS							\
	(ARRAY_SIZE(venet_tx_stats) + ARRAY_SIZE(venet_rx_stats) + ARRAY_SIZE(venet_counters))

static int venet_get_sset_count(struct net_device *dev, int set)
{
	return set == ETH_SS_STATS ? VENET_NUM_STATS : -EOPNOTSUPP;
}

static void venet_get_strings(struct net_device *dev, u32 set, u8 *data)
{
	int i;

	if (set != ETH_SS_STATS)
		return;
	for (i = 0; i < ARRAY_SIZE(venet_tx_stats); i++)
		ethtool_sprintf(&data, "tx_%s", venet_tx_stats[i].name);
	for (i = 0; i < ARRAY_SIZE(venet_rx_stats); i++)
		ethtool_sprintf(&data, "rx_%s", venet_rx_stats[i].name);
	for (i = 0; i < ARRAY_SIZE(venet_counters); i++)
		ethtool_sprintf(&data, "%s", venet_counters[i].name);
}

static u64 *venet_read_stats(const struct venet_stat *stats, int num_stats, const void *from,
			     const struct u64_stats_sync *syncp, u64 *data)
{
	unsigned int start;
	int i;

	do {
		start = u64_stats_fetch_begin(syncp);
		for (i = 0; i < num_stats; i++)
			data[i] = u64_stats_read((const u64_stats_t *)(from + stats[i].offset));
	} while (u64_stats_fetch_retry(syncp, start));
	return data + num_stats;
}

static void venet_get_ethtool_stats(struct net_device *dev, struct ethtool_stats *stats, u64 *data)
{
	struct venet *venet = netdev_priv(dev);
	int i;

	data = venet_read_stats(venet_tx_stats, ARRAY_SIZE(venet_tx_stats), &venet->tx.stats,
				&venet->tx.stats.syncp, data);
	data = venet_read_stats(venet_rx_stats, ARRAY_SIZE(venet_rx_stats), &venet->rx.stats,
				&venet->rx.stats.syncp, data);
	for (i = 0; i < ARRAY_SIZE(venet_counters); i++)
		data[i] = READ_ONCE(*(u64 *)((void *)venet + venet_counters[i].offset));
}

static void venet_get_drvinfo(struct net_device *dev, struct ethtool_drvinfo *info)
{
	strscpy(info->driver, KBUILD_MODNAME, sizeof(info->driver));
	snprintf(info->version, sizeof(info->version), "%u", VENET_VERSION);
	strscpy(info->bus_info, dev_name(dev->dev.parent), sizeof(info->bus_info));
}

/* There is no cable: as fast as the machine. */
static int venet_get_link_ksettings(struct net_device *dev, struct ethtool_link_ksettings *settings)
{
	settings->base.speed = SPEED_UNKNOWN;
	settings->base.duplex = DUPLEX_FULL;
	settings->base.port = PORT_OTHER;
	settings->base.autoneg = AUTONEG_DISABLE;
	return 0;
}

static void venet_get_ringparam(struct net_device *dev, struct ethtool_ringparam *ring,
				struct kernel_ethtool_ringparam *kernel_ring,
				struct netlink_ext_ack *extack)
{
	struct venet *venet = netdev_priv(dev);

	ring->rx_max_pending = VENET_MAX_SLOTS;
	ring->tx_max_pending = VENET_MAX_SLOTS;
	ring->rx_pending = venet->rx.num_slots;
	ring->tx_pending = venet->tx.num_slots;
}

static bool venet_is_ring_size(u32 num_slots)
{
	return is_power_of_2(num_slots) && num_slots >= VENET_MIN_SLOTS &&
	       num_slots <= VENET_MAX_SLOTS;
}

static int venet_set_ringparam(struct net_device *dev, struct ethtool_ringparam *ring,
			       struct kernel_ethtool_ringparam *kernel_ring,
			       struct netlink_ext_ack *extack)
{
	struct venet *venet = netdev_priv(dev);
	u32 old_rx = venet->rx.num_slots, old_tx = venet->tx.num_slots;
	int err;

	if (!venet_is_ring_size(ring->rx_pending) || !venet_is_ring_size(ring->tx_pending)) {
		NL_SET_ERR_MSG(extack, "ring sizes are powers of two from 32 to 4096");
		return -EINVAL;
	}
	if (ring->rx_pending == old_rx && ring->tx_pending == old_tx)
		return 0;
	err = venet_resize(venet, ring->rx_pending, ring->tx_pending);
	if (!err || err == -ENODEV)
		return 0;
	NL_SET_ERR_MSG(extack, "cannot connect with rings of this size");
	if (venet_resize(venet, old_rx, old_tx))
		dev_close(dev);
	return err;
}

static int venet_get_coalesce(struct net_device *dev, struct ethtool_coalesce *coalesce,
			      struct kernel_ethtool_coalesce *kernel_coalesce,
			      struct netlink_ext_ack *extack)
{
	struct venet *venet = netdev_priv(dev);

	coalesce->tx_max_coalesced_frames = venet->tx.reclaim_slots;
	return 0;
}

static int venet_set_coalesce(struct net_device *dev, struct ethtool_coalesce *coalesce,
			      struct kernel_ethtool_coalesce *kernel_coalesce,
			      struct netlink_ext_ack *extack)
{
	struct venet *venet = netdev_priv(dev);

	if (!coalesce->tx_max_coalesced_frames) {
		NL_SET_ERR_MSG(extack, "tx-frames is at least 1");
		return -EINVAL;
	}
	WRITE_ONCE(venet->tx.reclaim_slots, coalesce->tx_max_coalesced_frames);
	return 0;
}

const struct ethtool_ops venet_ethtool_ops = {
	.supported_coalesce_params = ETHTOOL_COALESCE_TX_MAX_FRAMES,
	.get_drvinfo = venet_get_drvinfo,
	.get_link = ethtool_op_get_link,
	.get_link_ksettings = venet_get_link_ksettings,
	.get_ringparam = venet_get_ringparam,
	.set_ringparam = venet_set_ringparam,
	.get_coalesce = venet_get_coalesce,
	.set_coalesce = venet_set_coalesce,
	.get_sset_count = venet_get_sset_count,
	.get_strings = venet_get_strings,
	.get_ethtool_stats = venet_get_ethtool_stats,
	.get_ts_info = ethtool_op_get_ts_info,
};
