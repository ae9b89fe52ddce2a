// SPDX-License-Identifier: GPL-2.0
/* Driver of "page-hints" interfaces of a virtual bus: the connection, from its start to its end. */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "hints.h"

struct vbus_ring *hints_ring_alloc(struct hints *hints, const char *what, u32 num_slots,
				   vbus_ring_notify notify)
{
	char name[32];

	snprintf(name, sizeof(name), "%s-%s", dev_name(&hints->vdev->dev), what);
	return vbus_ring_alloc(num_slots, name, notify, hints);
}

/**
 * hints_close - ends the connection, and with it every wait for the host
 * @hints: may be closed already
 *
 * If the host does not let go, the wait goes on for ever: nobody may use the blocks that it has.
 */
void hints_close(struct hints *hints)
{
	mutex_lock(&hints->close_lock);
	if (hints->is_open) {
		hints->is_open = false;
		if (!vbus_close(hints->vdev)) {
			WRITE_ONCE(hints->is_closed, true);
			wake_up_all(&hints->release.wait);
		}
	}
	mutex_unlock(&hints->close_lock);
}

/* Bytes of shared memory go with the rings. */
static void hints_free(struct hints *hints)
{
	vbus_ring_free(hints->release.ring);
	vbus_ring_free(hints->events);
	hints_scan_free(hints);
	kfree(hints);
}

static int hints_hello(struct hints *hints, u32 features)
{
	struct hints_hello_data hello = { .features = cpu_to_le32(features) };
	int ret = vbus_call(hints->vdev, HINTS_FUNC_HELLO, &hello, sizeof(hello));

	if (ret < 0)
		return ret;
	hints->features = le32_to_cpu(hello.features) & features;
	hints->release_bytes = le32_to_cpu(hello.release_bytes);
	hints->num_pages = le64_to_cpu(hello.num_pages);
	return 0;
}

static int hints_start(struct hints *hints)
{
	/* A pattern that the kernel expects in free pages would be gone. */
	u32 features = HINTS_FEATURE_TABLE |
		       (page_poisoning_enabled_static() ?
				0 : HINTS_FEATURE_RELEASE | HINTS_FEATURE_DROPPED);
	int ret;

	ret = hints_hello(hints, features);
	if (!ret)
		ret = hints_events_share(hints);
	if (!ret && hints->features & HINTS_FEATURE_RELEASE)
		ret = hints_release_share(hints);
	if (!ret && hints->features & HINTS_FEATURE_TABLE)
		ret = hints_scan_share(hints);
	if (!ret)
		ret = vbus_call(hints->vdev, HINTS_FUNC_START, NULL, 0);
	return ret < 0 ? ret : 0;
}

static int hints_probe(struct vbus_device *vdev)
{
	struct hints *hints;
	int err;

	hints = kzalloc(sizeof(*hints), GFP_KERNEL);
	if (!hints)
		return -ENOMEM;
	hints->vdev = vdev;
	mutex_init(&hints->close_lock);
	INIT_WORK(&hints->event_work, hints_event_work);
	hints_release_init(hints);
	hints_scan_init(hints);
	vbus_set_drvdata(vdev, hints);

	err = vbus_open(vdev, HINTS_VERSION);
	if (err)
		goto free;
	hints->is_open = true;
	err = hints_start(hints);
	if (err)
		goto close;
	if (hints->features & HINTS_FEATURE_RELEASE)
		hints_release_register(hints);
	if (hints->features & HINTS_FEATURE_TABLE)
		hints_scan_start(hints);
	/* Enables the notification, and misses nothing. */
	queue_work(system_unbound_wq, &hints->event_work);
	return 0;
close:
	/* An early event may have scheduled it. */
	WRITE_ONCE(hints->is_ending, true);
	hints_close(hints);
	cancel_work_sync(&hints->event_work);
free:
	dev_err(&vdev->dev, "cannot connect: %d\n", err);
	hints_free(hints);
	return err;
}

static void hints_remove(struct vbus_device *vdev)
{
	struct hints *hints = vbus_get_drvdata(vdev);

	WRITE_ONCE(hints->is_ending, true);
	hints_scan_stop(hints);
	/* Before the rest: whoever is to end now may be waiting for the host. */
	hints_close(hints);
	cancel_work_sync(&hints->event_work);
	hints_release_unregister(hints);
	hints_free(hints);
}

static struct vbus_driver hints_driver = {
	.driver.dev_groups = hints_groups,
	.kind = HINTS_KIND,
	.probe = hints_probe,
	.remove = hints_remove,
};
module_vbus_driver(hints_driver);

MODULE_ALIAS_VBUS(HINTS_KIND);
MODULE_DESCRIPTION("Page hints for the host");
MODULE_LICENSE("GPL");
