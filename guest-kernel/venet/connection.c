// SPDX-License-Identifier: GPL-2.0
/*
 * The connection to the device. Its rings are shared until it is closed, so whatever changes them
 * closes it and makes a new one; what the link carries is negotiated while the link is down.
 */
#include <linux/etherdevice.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>

#include "venet.h"

/* All that the driver can use. */
#define VENET_TX_CAPS							\
	(VENET_TX_CAP_SG | VENET_TX_CAP_TSO4 | VENET_TX_CAP_TSO6 |	\
	 VENET_TX_CAP_ECN | VENET_TX_CAP_USO | VENET_TX_CAP_CSUM)

/* Priorities of the rings' signals. */
#define VENET_DATA_PRIORITY	0
#define VENET_EVENT_PRIORITY	1

/* How long a connection is not renewed after a fault: a broken device costs little. */
#define VENET_FAULT_DELAY	HZ

static_assert(VENET_MAX_SLOTS * VENET_SEGMENTS_BYTES <= VENET_MAX_SEGMENT_POOL_BYTES);

void venet_fault(struct venet *venet, const char *what)
{
	if (READ_ONCE(venet->is_broken))
		return;
	WRITE_ONCE(venet->is_broken, true);
	netdev_err(venet->dev, "the device broke the %s ring\n", what);
	schedule_delayed_work(&venet->reset_work, VENET_FAULT_DELAY);
}

/* Hard interrupts. The host does not repeat them, so there is nothing to switch off here. */

static void venet_rx_notify(struct vbus_ring *ring, void *context)
{
	struct venet *venet = context;

	venet->rx.num_interrupts++;
	napi_schedule(&venet->napi);
}

static void venet_tx_notify(struct vbus_ring *ring, void *context)
{
	struct venet *venet = context;

	venet->tx.num_interrupts++;
	napi_schedule(&venet->napi);
}

static void venet_event_notify(struct vbus_ring *ring, void *context)
{
	struct venet *venet = context;

	venet->num_event_interrupts++;
	schedule_work(&venet->event_work);
}

static int venet_negotiate(struct venet *venet, u32 group, u32 bits, u32 *given)
{
	struct venet_capabilities caps = {
		.group = cpu_to_le32(group),
		.bits = cpu_to_le32(bits),
	};
	int err = vbus_call(venet->vdev, VENET_FUNC_NEGOTIATE, &caps, sizeof(caps));

	if (err < 0)
		return err;
	*given = le32_to_cpu(caps.bits) & bits;
	return 0;
}

static int venet_negotiate_rx(struct venet *venet, u32 bits)
{
	u32 given;
	int err = venet_negotiate(venet, VENET_CAP_GROUP_RX, VENET_RX_CAP_MERGED | bits, &given);

	/* Without merging a buffer would have to hold 64 KiB for that. */
	if (!err && !(given & VENET_RX_CAP_MERGED) && given & VENET_RX_GSO_CAPS)
		err = venet_negotiate(venet, VENET_CAP_GROUP_RX, bits & ~VENET_RX_GSO_CAPS, &given);
	if (!err)
		venet->rx_caps = given;
	return err;
}

static struct vbus_ring *venet_ring_alloc(struct venet *venet, const char *what, u32 num_slots,
					  vbus_ring_notify notify)
{
	char name[32];

	snprintf(name, sizeof(name), "%s-%s", dev_name(&venet->vdev->dev), what);
	return vbus_ring_alloc(num_slots, name, notify, venet);
}

static int venet_alloc(struct venet *venet, bool has_events)
{
	struct venet_tx *tx = &venet->tx;
	struct venet_rx *rx = &venet->rx;

	rx->buffers = kvcalloc(rx->num_slots, sizeof(*rx->buffers), GFP_KERNEL);
	tx->skbs = kvcalloc(tx->num_slots, sizeof(*tx->skbs), GFP_KERNEL);
	if (!rx->buffers || !tx->skbs)
		return -ENOMEM;
	rx->ring = venet_ring_alloc(venet, "rx", rx->num_slots, venet_rx_notify);
	tx->ring = venet_ring_alloc(venet, "tx", tx->num_slots, venet_tx_notify);
	if (IS_ERR(rx->ring))
		return PTR_ERR(rx->ring);
	if (IS_ERR(tx->ring))
		return PTR_ERR(tx->ring);
	if (has_events) {
		venet->events = venet_ring_alloc(venet, "event", VENET_EVENT_SLOTS,
						 venet_event_notify);
		if (IS_ERR(venet->events))
			return PTR_ERR(venet->events);
	}
	if (venet->tx_caps & VENET_TX_CAP_SG) {
		int err = vbus_shm_alloc(&tx->pool, tx->num_slots * VENET_SEGMENTS_BYTES);

		if (err)
			return err;
		tx->segments = tx->pool.memory;
	}
	return 0;
}

static int venet_share(struct venet *venet)
{
	struct vbus_device *vdev = venet->vdev;
	struct venet_tx *tx = &venet->tx;
	struct venet_rx *rx = &venet->rx;
	int err;

	if (tx->segments) {
		err = vbus_shm_share(vdev, &tx->pool, VENET_SHM_ID_TX_SEGMENTS);
		if (err)
			return err;
	}
	if (venet->events) {
		err = vbus_ring_share(vdev, venet->events, VENET_SHM_ID_EVENT_RING,
				      VENET_EVENT_PRIORITY);
		if (err)
			return err;
	}
	err = vbus_ring_share(vdev, rx->ring, VENET_SHM_ID_RX_RING, VENET_DATA_PRIORITY);
	if (err)
		return err;
	return vbus_ring_share(vdev, tx->ring, VENET_SHM_ID_TX_RING, VENET_DATA_PRIORITY);
}

/*
 * Closes the connection and frees what it used. If the host does not let go of the buffers, they stay
 * allocated for ever.
 */
static void venet_close(struct venet *venet)
{
	bool is_leaked = vbus_close(venet->vdev) < 0;

	if (is_leaked)
		netdev_err(venet->dev, "the host keeps the buffers, which are lost\n");
	venet_tx_free(venet, is_leaked);
	if (!is_leaked)
		venet_rx_free(&venet->rx);
	vbus_ring_free(venet->tx.ring);
	vbus_ring_free(venet->rx.ring);
	vbus_ring_free(venet->events);
	vbus_shm_free(&venet->tx.pool);
	kvfree(venet->tx.skbs);
	kvfree(venet->rx.buffers);
	venet->tx.ring = NULL;
	venet->rx.ring = NULL;
	venet->events = NULL;
	venet->tx.segments = NULL;
	memset(&venet->tx.pool, 0, sizeof(venet->tx.pool));
	venet->tx.skbs = NULL;
	venet->rx.buffers = NULL;
}

/*
 * Learns who the device is; -ESTALE if a host that was restarted has another one in its place. What
 * it can do may have changed.
 */
static int venet_identify(struct venet *venet, struct venet_link_info *info)
{
	u8 mac[ETH_ALEN];
	int err;

	err = vbus_call(venet->vdev, VENET_FUNC_MAC_QUERY, mac, sizeof(mac));
	if (err < 0)
		return err;
	if (venet->dev->reg_state == NETREG_UNINITIALIZED)
		ether_addr_copy(venet->mac, mac);
	else if (!ether_addr_equal(venet->mac, mac))
		return -ESTALE;
	return venet_query_link(venet, info);
}

/* Keeps what is set within what the device can do now. */
static void venet_adapt(struct net_device *dev)
{
	if (dev->mtu > dev->max_mtu) {
		netdev_warn(dev, "the host has an MTU of %u now\n", dev->max_mtu);
		dev_set_mtu(dev, dev->max_mtu);
	}
	netdev_update_features(dev);
}

/**
 * venet_connect - opens the device, negotiates, and shares the rings; the link stays down
 * @venet: not connected
 * @rx_caps: bits of VENET_CAP_GROUP_RX that are wanted
 */
int venet_connect(struct venet *venet, u32 rx_caps)
{
	struct venet_link_info info;
	u32 event_caps = 0;
	int err;

	err = vbus_open(venet->vdev, VENET_VERSION);
	if (err)
		return err;
	err = venet_identify(venet, &info);
	if (err < 0)
		goto close;
	err = venet_negotiate(venet, VENET_CAP_GROUP_TX, VENET_TX_CAPS, &venet->tx_caps);
	if (err)
		goto close;
	err = venet_negotiate(venet, VENET_CAP_GROUP_EVENTS, VENET_EVENT_CAP_LINK_STATE,
			      &event_caps);
	if (err)
		goto close;
	err = venet_negotiate_rx(venet, rx_caps);
	if (err)
		goto close;
	venet->dev->max_mtu = clamp_t(u32, le32_to_cpu(info.mtu), ETH_MIN_MTU,
				      venet_rx_max_mtu(venet->rx_caps));
	err = venet_alloc(venet, event_caps & VENET_EVENT_CAP_LINK_STATE);
	if (err)
		goto close;
	venet_rx_init(&venet->rx, venet->rx_caps);
	err = venet_share(venet);
	if (err)
		goto close;
	venet->is_broken = false;
	venet->is_connected = true;
	if (venet->events) {
		venet_post_events(venet, VENET_EVENT_SLOTS);
		/* Enables the notification, and misses nothing. */
		schedule_work(&venet->event_work);
	}
	if (venet->dev->reg_state == NETREG_REGISTERED)
		venet_adapt(venet->dev);
	return 0;
close:
	venet_close(venet);
	return err < 0 ? err : -EIO;
}

/**
 * venet_disconnect - ends the connection, and drops all that is underway
 * @venet: its link is down
 */
void venet_disconnect(struct venet *venet)
{
	if (!venet->is_connected)
		return;
	venet->is_connected = false;
	venet_close(venet);
}

/**
 * venet_reconnect - closes the connection and makes a new one, with the link as it should be
 * @venet: not removed
 *
 * Return: -ENODEV if the host is gone. After other errors there is no connection
 */
int venet_reconnect(struct venet *venet)
{
	bool is_running = netif_running(venet->dev);
	int err;

	ASSERT_RTNL();
	err = venet_link_down(venet);
	if (err)
		return err;
	venet_disconnect(venet);
	venet->num_resets++;
	err = venet_connect(venet, venet_rx_caps_of(venet->dev->features));
	if (!err && is_running)
		err = venet_link_up(venet);
	return err;
}

/**
 * venet_resize - connects anew with rings of other sizes
 * @venet: not removed
 * @rx_slots: slots of the receive ring
 * @tx_slots: slots of the transmit ring
 */
int venet_resize(struct venet *venet, u32 rx_slots, u32 tx_slots)
{
	venet_link_down(venet);
	/* With the old sizes. */
	venet_disconnect(venet);
	venet->rx.num_slots = rx_slots;
	venet->tx.num_slots = tx_slots;
	return venet_reconnect(venet);
}

/**
 * venet_renegotiate_rx - changes what the device leaves to us; the connection stays
 * @venet: connected
 * @rx_caps: bits of VENET_CAP_GROUP_RX that are wanted
 */
int venet_renegotiate_rx(struct venet *venet, u32 rx_caps)
{
	bool was_up = venet->is_link_up;
	int err, up_err = 0;

	ASSERT_RTNL();
	venet_link_down(venet);
	err = venet_negotiate_rx(venet, rx_caps);
	if (was_up)
		up_err = venet_link_up(venet);
	return err ?: up_err;
}
