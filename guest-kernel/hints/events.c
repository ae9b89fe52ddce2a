// SPDX-License-Identifier: GPL-2.0
/* What the host asks for. */
#include <alacrity/vbus_ring.h>

#include "hints.h"

/* Most of them for what the host drops. */
#define HINTS_EVENT_SLOTS	512
#define HINTS_EVENT_PRIORITY	1

static void hints_event_notify(struct vbus_ring *ring, void *context)
{
	struct hints *hints = context;

	if (!READ_ONCE(hints->is_ending))
		queue_work(system_unbound_wq, &hints->event_work);
}

/* Hands the next @num_slots of the event ring, empty, to the device. */
static void hints_post_events(struct hints *hints, u32 num_slots)
{
	vbus_ring_publish_empty(hints->events, num_slots);
	vbus_ring_signal(hints->events);
}

int hints_events_share(struct hints *hints)
{
	hints->events = hints_ring_alloc(hints, "event", HINTS_EVENT_SLOTS, hints_event_notify);
	if (IS_ERR(hints->events))
		return PTR_ERR(hints->events);
	hints_post_events(hints, HINTS_EVENT_SLOTS);
	return vbus_ring_share(hints->vdev, hints->events, HINTS_SHM_ID_EVENT_RING,
			       HINTS_EVENT_PRIORITY);
}

static void hints_handle_event(struct hints *hints, const struct vbus_ring_slot *slot)
{
	__le64 argument = slot->meta[1];

	hints->num_events++;
	switch (le64_to_cpu(slot->meta[0])) {
	case HINTS_EVENT_RELEASE_NOW:
		hints_release_now(hints);
		vbus_call(hints->vdev, HINTS_FUNC_RELEASED, &argument, sizeof(argument));
		break;
	case HINTS_EVENT_DROPPED:
		if (hints->features & HINTS_FEATURE_RELEASE)
			hints_evict(hints, le64_to_cpu(slot->addr), le32_to_cpu(slot->len));
		break;
	case HINTS_EVENT_SCAN_RATE:
		hints_scan_set_rate(hints, le64_to_cpu(argument));
		break;
	}
}

void hints_event_work(struct work_struct *work)
{
	struct hints *hints = container_of(work, struct hints, event_work);
	struct vbus_ring *ring = hints->events;

	while (!READ_ONCE(hints->is_ending)) {
		int nth, num_slots;

		vbus_ring_disable_notify(ring);
		num_slots = vbus_ring_returned(ring);
		if (num_slots < 0) {
			dev_err(&hints->vdev->dev, "the device broke the event ring\n");
			break;
		}
		for (nth = 0; nth < num_slots && !READ_ONCE(hints->is_ending); nth++)
			hints_handle_event(hints, vbus_ring_returned_slot(ring, nth));
		if (num_slots) {
			vbus_ring_release(ring, num_slots);
			hints_post_events(hints, num_slots);
		}
		if (vbus_ring_enable_notify(ring))
			break;
		cond_resched();
	}
}
