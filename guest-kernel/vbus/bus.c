// SPDX-License-Identifier: GPL-2.0
/*
 * The virtual bus of a guest: the bus type, its devices and its drivers.
 *
 * Devices come from connectors. Each is named after its id, and its kind picks the driver. Of
 * further connectors the names have the number of the connector too.
 */
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/version.h>

#include "vbus.h"

static ssize_t id_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", to_vbus_device(dev)->id);
}
static DEVICE_ATTR_RO(id);

static ssize_t kind_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", to_vbus_device(dev)->kind);
}
static DEVICE_ATTR_RO(kind);

static ssize_t modalias_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "vbus:%s\n", to_vbus_device(dev)->kind);
}
static DEVICE_ATTR_RO(modalias);

static ssize_t state_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	bool is_lost = READ_ONCE(to_vbus_bus_device(to_vbus_device(dev))->is_lost);

	return sysfs_emit(buf, "%s\n", is_lost ? "lost" : "present");
}
static DEVICE_ATTR_RO(state);

static struct attribute *vbus_device_attrs[] = {
	&dev_attr_id.attr,
	&dev_attr_kind.attr,
	&dev_attr_modalias.attr,
	&dev_attr_state.attr,
	NULL,
};
ATTRIBUTE_GROUPS(vbus_device);

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
static int vbus_match(struct device *dev, const struct device_driver *driver)
#else
static int vbus_match(struct device *dev, struct device_driver *driver)
#endif
{
	const struct vbus_driver *vdrv = container_of(driver, struct vbus_driver, driver);

	return !strcmp(to_vbus_device(dev)->kind, vdrv->kind);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
static int vbus_uevent(const struct device *dev, struct kobj_uevent_env *env)
#else
static int vbus_uevent(struct device *dev, struct kobj_uevent_env *env)
#endif
{
	const struct vbus_device *vdev = container_of(dev, struct vbus_device, dev);

	return add_uevent_var(env, "MODALIAS=vbus:%s", vdev->kind);
}

static int vbus_probe(struct device *dev)
{
	struct vbus_driver *vdrv = container_of(dev->driver, struct vbus_driver, driver);
	struct vbus_device *vdev = to_vbus_device(dev);
	int ret = vdrv->probe(vdev);

	if (ret)
		vbus_close(vdev); /* whatever the driver left open */
	return ret;
}

static void vbus_remove(struct device *dev)
{
	struct vbus_driver *vdrv = container_of(dev->driver, struct vbus_driver, driver);
	struct vbus_device *vdev = to_vbus_device(dev);

	if (vdrv->remove)
		vdrv->remove(vdev);
	vbus_close(vdev);
}

static struct bus_type vbus_bus_type = {
	.name = "vbus",
	.dev_groups = vbus_device_groups,
	.match = vbus_match,
	.uevent = vbus_uevent,
	.probe = vbus_probe,
	.remove = vbus_remove,
};

int __vbus_register_driver(struct vbus_driver *driver, struct module *owner, const char *name)
{
	if (!driver->kind || !driver->probe || !driver->lost != !driver->returned)
		return -EINVAL;
	driver->driver.name = name;
	driver->driver.owner = owner;
	driver->driver.bus = &vbus_bus_type;
	return driver_register(&driver->driver);
}
EXPORT_SYMBOL_GPL(__vbus_register_driver);

void vbus_unregister_driver(struct vbus_driver *driver)
{
	driver_unregister(&driver->driver);
}
EXPORT_SYMBOL_GPL(vbus_unregister_driver);

static void vbus_device_release(struct device *dev)
{
	kfree(to_vbus_bus_device(to_vbus_device(dev)));
}

static DEFINE_IDA(vbus_connectors);

int vbus_connector_register(struct vbus_connector *connector)
{
	int nr = ida_alloc(&vbus_connectors, GFP_KERNEL);

	if (nr < 0)
		return nr;
	connector->nr = nr;
	xa_init_flags(&connector->shares, XA_FLAGS_ALLOC1 | XA_FLAGS_LOCK_IRQ);
	mutex_init(&connector->lock);
	INIT_LIST_HEAD(&connector->devices);
	connector->is_gone = false;
	return 0;
}
EXPORT_SYMBOL_GPL(vbus_connector_register);

/* What it finds stays: devices come and go one at a time. */
static struct vbus_bus_device *vbus_find(struct vbus_connector *connector, u32 id)
{
	struct vbus_bus_device *device, *found = NULL;

	mutex_lock(&connector->lock);
	list_for_each_entry(device, &connector->devices, node) {
		if (device->vdev.id == id) {
			found = device;
			break;
		}
	}
	mutex_unlock(&connector->lock);
	return found;
}

/* The driver of @device, whose lock is held, or NULL. */
static struct vbus_driver *vbus_driver_of(struct vbus_bus_device *device)
{
	struct device *dev = &device->vdev.dev;

	device_lock_assert(dev);
	return dev->driver ? container_of(dev->driver, struct vbus_driver, driver) : NULL;
}

void vbus_connector_lose(struct vbus_connector *connector, u32 id)
{
	struct vbus_bus_device *device = vbus_find(connector, id);
	bool needs_release = false;
	struct vbus_driver *vdrv;
	struct device *dev;

	if (!device)
		return;
	dev = &device->vdev.dev;
	WRITE_ONCE(device->is_lost, true);
	device_lock(dev);
	/* It may be unloaded once the lock is free. */
	vdrv = vbus_driver_of(device);
	if (vdrv && vdrv->lost)
		vdrv->lost(&device->vdev);
	else if (vdrv)
		needs_release = true;
	device_unlock(dev);
	if (needs_release)
		device_release_driver(dev);
}
EXPORT_SYMBOL_GPL(vbus_connector_lose);

static int vbus_return(struct vbus_bus_device *device)
{
	struct device *dev = &device->vdev.dev;
	struct vbus_driver *vdrv;
	int ret = -ENXIO; /* no driver, or one that found the device lost */

	WRITE_ONCE(device->is_lost, false);
	device_lock(dev);
	vdrv = vbus_driver_of(device);
	if (vdrv && vdrv->returned)
		ret = vdrv->returned(&device->vdev);
	device_unlock(dev);
	return ret ? device_reprobe(dev) : 0;
}

int vbus_connector_add(struct vbus_connector *connector, u32 id, const char *kind)
{
	struct vbus_bus_device *device = vbus_find(connector, id);
	struct vbus_device *vdev;
	int ret;

	if (device && device->is_lost && !strcmp(device->vdev.kind, kind))
		return vbus_return(device);
	if (device)
		return -EEXIST;
	device = kzalloc(sizeof(*device), GFP_KERNEL);
	if (!device)
		return -ENOMEM;
	init_rwsem(&device->verbs);
	vdev = &device->vdev;
	vdev->connector = connector;
	vdev->id = id;
	vdev->dev.bus = &vbus_bus_type;
	vdev->dev.parent = connector->parent;
	vdev->dev.release = vbus_device_release;
	device_initialize(&vdev->dev);
	if (strscpy(vdev->kind, kind, sizeof(vdev->kind)) <= 0) {
		ret = -EINVAL;
		goto error;
	}
	if (connector->nr)
		ret = dev_set_name(&vdev->dev, "vbus%u-%u", connector->nr, id);
	else
		ret = dev_set_name(&vdev->dev, "vbus%u", id);
	if (ret)
		goto error;
	ret = device_add(&vdev->dev);
	if (ret)
		goto error;
	mutex_lock(&connector->lock);
	list_add_tail(&device->node, &connector->devices);
	mutex_unlock(&connector->lock);
	return 0;

error:
	put_device(&vdev->dev);
	return ret;
}
EXPORT_SYMBOL_GPL(vbus_connector_add);

void vbus_connector_drop(struct vbus_connector *connector, u32 id)
{
	struct vbus_bus_device *device = vbus_find(connector, id);

	if (!device)
		return;
	mutex_lock(&connector->lock);
	list_del(&device->node);
	mutex_unlock(&connector->lock);
	WRITE_ONCE(device->is_dropped, true);
	device_unregister(&device->vdev.dev);
}
EXPORT_SYMBOL_GPL(vbus_connector_drop);

void vbus_connector_unregister(struct vbus_connector *connector)
{
	struct vbus_bus_device *device;

	for (;;) {
		mutex_lock(&connector->lock);
		device = list_first_entry_or_null(&connector->devices, struct vbus_bus_device,
						  node);
		if (device)
			list_del(&device->node);
		mutex_unlock(&connector->lock);
		if (!device)
			break;
		device_unregister(&device->vdev.dev);
	}
	xa_destroy(&connector->shares);
	if (connector->nr >= 0)
		ida_free(&vbus_connectors, connector->nr);
	connector->nr = -1;
}
EXPORT_SYMBOL_GPL(vbus_connector_unregister);

static int __init vbus_init(void)
{
	return bus_register(&vbus_bus_type);
}
module_init(vbus_init);

static void __exit vbus_exit(void)
{
	bus_unregister(&vbus_bus_type);
}
module_exit(vbus_exit);

MODULE_DESCRIPTION("Virtual bus");
MODULE_LICENSE("GPL");
