// SPDX-License-Identifier: GPL-2.0
/* Driver of "virtual-ethernet" interfaces of a virtual bus: the interface as the kernel sees it. */
#include <linux/etherdevice.h>
#include <linux/module.h>
#include <linux/rtnetlink.h>

#include "venet.h"

/*
 * So many bytes on the way never stop the queue: slots are reclaimed by who comes by (tx.c), so BQL
 * sees returns later than they happen, and a lower limit would cost an interrupt for every frame or
 * two. It is the time of 200 microseconds at 10 Gbit/s.
 */
#define VENET_BQL_MIN_BYTES	(256U << 10)

/* The longest that the host is waited for when the interface goes down. */
#define VENET_DRAIN_US		50000

static const struct {
	u32 cap;
	netdev_features_t feature;
} venet_tx_features[] = {
	{ VENET_TX_CAP_SG, NETIF_F_SG },
	{ VENET_TX_CAP_CSUM, NETIF_F_HW_CSUM },
	{ VENET_TX_CAP_TSO4, NETIF_F_TSO },
	{ VENET_TX_CAP_TSO6, NETIF_F_TSO6 },
	{ VENET_TX_CAP_ECN, NETIF_F_TSO_ECN },
	{ VENET_TX_CAP_USO, NETIF_F_GSO_UDP_L4 },
};

/**
 * venet_rx_caps_of - what the device may leave to us
 * @features: of the interface
 *
 * Return: bits of VENET_CAP_GROUP_RX
 */
u32 venet_rx_caps_of(netdev_features_t features)
{
	u32 caps = 0;

	if (features & NETIF_F_RXCSUM)
		caps |= VENET_RX_CAP_CSUM;
	if (features & NETIF_F_GRO_HW)
		caps |= VENET_RX_GSO_CAPS;
	return caps;
}

static netdev_features_t venet_features_of(u32 tx_caps, u32 rx_caps)
{
	netdev_features_t features = 0;
	int i;

	for (i = 0; i < ARRAY_SIZE(venet_tx_features); i++)
		if (tx_caps & venet_tx_features[i].cap)
			features |= venet_tx_features[i].feature;
	if (rx_caps & VENET_RX_CAP_CSUM)
		features |= NETIF_F_RXCSUM;
	if (rx_caps & VENET_RX_GSO_CAPS)
		features |= NETIF_F_GRO_HW;
	return features;
}

static int venet_open(struct net_device *dev)
{
	struct venet *venet = netdev_priv(dev);
	int err = 0;

	if (!venet->is_connected)
		err = venet_connect(venet, venet_rx_caps_of(dev->features));
	if (!err)
		err = venet_link_up(venet);
	if (err == -ENODEV) {
		/* Up, but without a carrier until the host is back. */
		netif_tx_disable(dev);
		return 0;
	}
	return err;
}

static int venet_stop(struct net_device *dev)
{
	struct venet *venet = netdev_priv(dev);

	netif_tx_disable(dev);
	if (!venet->is_link_up)
		return 0;
	venet_tx_drain(venet, VENET_DRAIN_US);
	if (venet_link_down(venet) == -ENODEV)
		return 0;
	/* Frames that the host has not taken belong to it until it returns them or we close. */
	if (venet->is_broken || !venet_tx_drain(venet, 0))
		venet_disconnect(venet);
	else
		venet_rx_discard(venet);
	return 0;
}

static int venet_set_features(struct net_device *dev, netdev_features_t features)
{
	struct venet *venet = netdev_priv(dev);
	u32 wanted = venet_rx_caps_of(features);
	int err;

	if (wanted == venet_rx_caps_of(dev->features) || !venet->is_connected)
		return 0;
	err = venet_renegotiate_rx(venet, wanted);
	return err == -ENODEV ? 0 : err;
}

static netdev_features_t venet_fix_features(struct net_device *dev, netdev_features_t features)
{
	struct venet *venet = netdev_priv(dev);
	netdev_features_t all = venet_features_of(~0U, 0);

	/* What the device could do once, it may not be able to after its host was restarted. */
	features &= ~(all & ~venet_features_of(venet->tx_caps, 0));
	/* The device leaves segmentation to us only together with checksums. */
	if (!(features & NETIF_F_RXCSUM))
		features &= ~NETIF_F_GRO_HW;
	return features;
}

/* The device checks the MTU that it was given by the host; ours is at most that. */
static int venet_change_mtu(struct net_device *dev, int mtu)
{
	WRITE_ONCE(dev->mtu, mtu);
	return 0;
}

/* Nothing to be done: the device filters nothing. Without it multicast addresses are refused. */
static void venet_set_rx_mode(struct net_device *dev)
{
}

static void venet_tx_timeout(struct net_device *dev, unsigned int queue)
{
	struct venet *venet = netdev_priv(dev);

	venet_count(&venet->tx.stats, timeouts);
	netdev_err(dev, "transmit timeout: %u slots are out, %sarmed\n", venet->tx.outstanding,
		   venet->tx.is_armed ? "" : "not ");
	schedule_delayed_work(&venet->reset_work, 0);
}

static void venet_get_stats64(struct net_device *dev, struct rtnl_link_stats64 *out)
{
	struct venet *venet = netdev_priv(dev);
	struct venet_tx_stats *tx = &venet->tx.stats;
	struct venet_rx_stats *rx = &venet->rx.stats;
	unsigned int start;

	do {
		start = u64_stats_fetch_begin(&tx->syncp);
		out->tx_packets = u64_stats_read(&tx->packets);
		out->tx_bytes = u64_stats_read(&tx->bytes);
		out->tx_dropped = u64_stats_read(&tx->dropped);
		out->tx_errors = u64_stats_read(&tx->timeouts);
	} while (u64_stats_fetch_retry(&tx->syncp, start));
	do {
		start = u64_stats_fetch_begin(&rx->syncp);
		out->rx_packets = u64_stats_read(&rx->packets);
		out->rx_bytes = u64_stats_read(&rx->bytes);
		out->rx_dropped = u64_stats_read(&rx->dropped);
		out->rx_errors = u64_stats_read(&rx->errors);
	} while (u64_stats_fetch_retry(&rx->syncp, start));
	out->rx_frame_errors = out->rx_errors;
}

static const struct net_device_ops venet_ops = {
	.ndo_open = venet_open,
	.ndo_stop = venet_stop,
	.ndo_start_xmit = venet_start_xmit,
	.ndo_features_check = venet_features_check,
	.ndo_fix_features = venet_fix_features,
	.ndo_set_features = venet_set_features,
	.ndo_change_mtu = venet_change_mtu,
	.ndo_set_rx_mode = venet_set_rx_mode,
	.ndo_set_mac_address = eth_mac_addr,
	.ndo_validate_addr = eth_validate_addr,
	.ndo_tx_timeout = venet_tx_timeout,
	.ndo_get_stats64 = venet_get_stats64,
};

static void venet_timer(struct timer_list *timer)
{
	struct venet *venet = container_of(timer, struct venet, timer);

	napi_schedule(&venet->napi);
}

static void venet_reset_work(struct work_struct *work)
{
	struct venet *venet = container_of(work, struct venet, reset_work.work);
	int err;

	rtnl_lock();
	/* An interface that is down connects anew when it is set up. */
	if (netif_running(venet->dev)) {
		err = venet_reconnect(venet);
		if (err && err != -ENODEV) {
			netdev_err(venet->dev, "cannot connect again: %d\n", err);
			dev_close(venet->dev);
		}
	}
	rtnl_unlock();
}

static void venet_init(struct venet *venet, struct net_device *dev, struct vbus_device *vdev)
{
	venet->dev = dev;
	venet->vdev = vdev;
	venet->tx.num_slots = VENET_DEFAULT_SLOTS;
	venet->tx.reclaim_slots = VENET_DEFAULT_RECLAIM_SLOTS;
	venet->rx.num_slots = VENET_DEFAULT_SLOTS;
	u64_stats_init(&venet->tx.stats.syncp);
	u64_stats_init(&venet->rx.stats.syncp);
	INIT_WORK(&venet->event_work, venet_event_work);
	INIT_DELAYED_WORK(&venet->reset_work, venet_reset_work);
	timer_setup(&venet->timer, venet_timer, 0);

	dev->netdev_ops = &venet_ops;
	dev->ethtool_ops = &venet_ethtool_ops;
	dev->priv_flags |= IFF_LIVE_ADDR_CHANGE;
	dev->min_mtu = ETH_MIN_MTU;
	netif_napi_add(dev, &venet->napi, venet_poll);
	netif_set_tso_max_segs(dev, VENET_MAX_GSO_SEGMENTS);
	netdev_queue_set_dql_min_limit(netdev_get_tx_queue(dev, 0), VENET_BQL_MIN_BYTES);
}

static void venet_set_up_features(struct venet *venet)
{
	struct net_device *dev = venet->dev;
	netdev_features_t features = venet_features_of(venet->tx_caps, venet->rx_caps);

	dev->hw_features |= features;
	/* The device checks what it is to segment. */
	dev->features |= features | NETIF_F_HIGHDMA | NETIF_F_GSO_ROBUST;
	dev->vlan_features |= features & ~(NETIF_F_RXCSUM | NETIF_F_GRO_HW);
}

static int venet_probe(struct vbus_device *vdev)
{
	struct net_device *dev;
	struct venet *venet;
	int err;

	dev = alloc_etherdev(sizeof(*venet));
	if (!dev)
		return -ENOMEM;
	SET_NETDEV_DEV(dev, &vdev->dev);
	venet = netdev_priv(dev);
	venet_init(venet, dev, vdev);
	vbus_set_drvdata(vdev, venet);

	rtnl_lock();
	err = venet_connect(venet, venet_rx_caps_of(NETIF_F_RXCSUM | NETIF_F_GRO_HW));
	rtnl_unlock();
	if (err) {
		dev_err(&vdev->dev, "cannot connect: %d\n", err);
		goto free;
	}
	if (is_valid_ether_addr(venet->mac))
		eth_hw_addr_set(dev, venet->mac);
	else
		eth_hw_addr_random(dev);
	venet_set_up_features(venet);
	dev->mtu = dev->max_mtu;
	netif_carrier_off(dev);
	err = register_netdev(dev);
	if (err)
		goto disconnect;
	netdev_info(dev, "%pM, MTU up to %u, transmit capabilities %#x, receive %#x\n",
		    dev->dev_addr, dev->max_mtu, venet->tx_caps, venet->rx_caps);
	return 0;
disconnect:
	rtnl_lock();
	venet_disconnect(venet);
	rtnl_unlock();
	cancel_work_sync(&venet->event_work);
	cancel_delayed_work_sync(&venet->reset_work);
free:
	free_netdev(dev);
	return err;
}

static void venet_remove(struct vbus_device *vdev)
{
	struct venet *venet = vbus_get_drvdata(vdev);

	unregister_netdev(venet->dev);
	rtnl_lock();
	venet_disconnect(venet);
	rtnl_unlock();
	/* Nothing schedules them any more. */
	cancel_work_sync(&venet->event_work);
	cancel_delayed_work_sync(&venet->reset_work);
	free_netdev(venet->dev);
}

static void venet_lost(struct vbus_device *vdev)
{
	struct venet *venet = vbus_get_drvdata(vdev);

	netdev_info(venet->dev, "the host is gone, no carrier until it is back\n");
	rtnl_lock();
	venet_link_down(venet);
	rtnl_unlock();
}

static int venet_returned(struct vbus_device *vdev)
{
	struct venet *venet = vbus_get_drvdata(vdev);
	int err;

	rtnl_lock();
	err = venet_reconnect(venet);
	rtnl_unlock();
	if (err == -ENODEV)
		return 0; /* gone again */
	if (err)
		netdev_err(venet->dev, "the host is back, but the device is not the same: %d\n",
			   err);
	else
		netdev_info(venet->dev, "the host is back\n");
	return err;
}

static struct vbus_driver venet_driver = {
	.kind = VENET_KIND,
	.probe = venet_probe,
	.remove = venet_remove,
	.lost = venet_lost,
	.returned = venet_returned,
};
module_vbus_driver(venet_driver);

MODULE_ALIAS_VBUS(VENET_KIND);
MODULE_DESCRIPTION("Network interfaces of a virtual bus");
MODULE_LICENSE("GPL");
