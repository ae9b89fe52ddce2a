// SPDX-License-Identifier: GPL-2.0
/*
 * Verbs of the bus, through the functions that every driver uses. The link stays down, so that the
 * device leaves the ring alone: its flags are set here as a host sets them that sleeps, or is awake.
 */
#include <linux/slab.h>

#include <alacrity/vbus_ring.h>

#include "times.h"

#define TIMES_RING_SLOTS	64

static struct vbus_device *times_vdev;
static struct vbus_ring *times_ring;

static void times_ignore(struct vbus_ring *ring, void *context)
{
}

static void times_close(struct vbus_device *vdev)
{
	times_vdev = NULL;
	vbus_close(vdev);
	vbus_ring_free(times_ring);
	times_ring = NULL;
}

static int times_probe(struct vbus_device *vdev)
{
	int ret;

	if (times_vdev)
		return -EBUSY;
	ret = vbus_open(vdev, VENET_VERSION);
	if (ret)
		return ret;
	times_ring = vbus_ring_alloc(TIMES_RING_SLOTS, "vbus-times", times_ignore, NULL);
	ret = PTR_ERR_OR_ZERO(times_ring);
	if (!ret)
		ret = vbus_ring_share(vdev, times_ring, VENET_SHM_ID_TX_RING, 0);
	if (ret)
		times_close(vdev);
	else
		times_vdev = vdev;
	return ret;
}

static struct vbus_driver times_driver = {
	.kind = VENET_KIND,
	.probe = times_probe,
	.remove = times_close,
};

int times_register_driver(void)
{
	int ret = vbus_register_driver(&times_driver);

	if (!ret && !times_vdev) {
		vbus_unregister_driver(&times_driver);
		ret = -ENODEV;
	}
	return ret;
}

void times_unregister_driver(void)
{
	vbus_unregister_driver(&times_driver);
}

int times_vbus_call(u32 num)
{
	u8 mac[6];
	int ret = 0;

	while (num-- && ret >= 0)
		ret = vbus_call(times_vdev, VENET_FUNC_MAC_QUERY, mac, sizeof(mac));
	return min(ret, 0);
}

/* The one of a driver, compiled for itself: its instructions can be counted in the module. */
static noinline bool times_signal(struct vbus_ring *ring)
{
	return vbus_ring_signal(ring);
}

static int times_signals(u32 num, bool is_wanted)
{
	struct vbus_signal_flags *flags = &times_ring->flags->to_south;

	WRITE_ONCE(flags->enabled, cpu_to_le64(is_wanted));
	while (num--) {
		WRITE_ONCE(flags->dirty, 0); /* the host has begun to look */
		if (times_signal(times_ring) != is_wanted)
			return -EPROTO;
	}
	return 0;
}

/* The host sleeps: each signal rings. */
int times_doorbell(u32 num)
{
	return times_signals(num, true);
}

/* The host is awake: none does. */
int times_suppressed(u32 num)
{
	return times_signals(num, false);
}
