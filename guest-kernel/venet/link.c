// SPDX-License-Identifier: GPL-2.0
/* The link: whether frames flow, and what the device says of it. */
#include <linux/rtnetlink.h>

#include "venet.h"

static void venet_set_carrier(struct venet *venet, bool is_up)
{
	if (is_up == netif_carrier_ok(venet->dev))
		return;
	if (is_up)
		netif_carrier_on(venet->dev);
	else
		netif_carrier_off(venet->dev);
}

int venet_query_link(struct venet *venet, struct venet_link_info *info)
{
	memset(info, 0, sizeof(*info));
	return vbus_call(venet->vdev, VENET_FUNC_LINK_QUERY, info, sizeof(*info));
}

/* Hands the next @num_slots of the event ring, empty, to the device. */
void venet_post_events(struct venet *venet, u32 num_slots)
{
	vbus_ring_publish_empty(venet->events, num_slots);
	vbus_ring_signal(venet->events);
}

void venet_event_work(struct work_struct *work)
{
	struct venet *venet = container_of(work, struct venet, event_work);

	rtnl_lock();
	while (venet->is_connected && venet->events) {
		int nth, num_slots;

		vbus_ring_disable_notify(venet->events);
		num_slots = vbus_ring_returned(venet->events);
		if (num_slots < 0) {
			venet_fault(venet, "event");
			break;
		}
		for (nth = 0; nth < num_slots; nth++) {
			const struct vbus_ring_slot *slot =
				vbus_ring_returned_slot(venet->events, nth);

			if (le64_to_cpu(slot->meta[0]) == VENET_EVENT_LINK_STATE &&
			    venet->is_link_up)
				venet_set_carrier(venet, slot->meta[1] != 0);
		}
		if (num_slots) {
			vbus_ring_release(venet->events, num_slots);
			venet_post_events(venet, num_slots);
		}
		if (vbus_ring_enable_notify(venet->events))
			break;
		cond_resched();
	}
	rtnl_unlock();
}

/**
 * venet_link_up - lets frames flow
 * @venet: connected, its link is down
 */
int venet_link_up(struct venet *venet)
{
	struct venet_link_info info;
	int err;

	venet_rx_refill(venet, GFP_KERNEL, true);
	napi_enable(&venet->napi);
	venet->is_link_up = true;
	err = vbus_call(venet->vdev, VENET_FUNC_LINK_UP, NULL, 0);
	if (err >= 0)
		err = venet_query_link(venet, &info);
	if (err < 0) {
		venet_link_down(venet);
		return err;
	}
	venet_set_carrier(venet, info.is_up != 0);
	netif_tx_start_all_queues(venet->dev);
	/* What came in the meantime; and it enables the notification. */
	local_bh_disable();
	napi_schedule(&venet->napi);
	local_bh_enable();
	return 0;
}

/**
 * venet_link_down - stops frames. What is in the rings stays there.
 * @venet: its link is up, or was until it was found to be broken
 *
 * Return: -ENODEV if the host has taken the device away and will say what comes of it; else 0
 */
int venet_link_down(struct venet *venet)
{
	if (!venet->is_link_up)
		return 0;
	venet->is_link_up = false;
	netif_tx_disable(venet->dev);
	netif_carrier_off(venet->dev);
	napi_disable(&venet->napi);
	timer_delete_sync(&venet->timer);
	return vbus_call(venet->vdev, VENET_FUNC_LINK_DOWN, NULL, 0) == -ENODEV ? -ENODEV : 0;
}
