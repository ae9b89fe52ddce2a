// SPDX-License-Identifier: GPL-2.0
/* Finds all functions, and brings them back after whatever was done to them. */
#include <linux/acpi.h>
#include <linux/delay.h>
#include <linux/slab.h>

#include "targets.h"

#define VIRTIO_VENDOR_ID	0x1af4
#define VIRTIO_DEVICE_BASE	0x1040
#define STEPS_PER_REST	32
/* Where interrupts are for processor 64. */
#define NOWHERE		0xfee40000U

/* The function's MSI-X table, which nobody uses. */
static void __iomem *map_vectors(struct target *target)
{
	u32 place;
	u16 control;

	target->msix = pci_find_capability(target->pdev, PCI_CAP_ID_MSIX);
	if (!target->msix)
		return NULL;
	pci_read_config_word(target->pdev, target->msix + PCI_MSIX_FLAGS, &control);
	target->num_vectors = (control & PCI_MSIX_FLAGS_QSIZE) + 1;
	pci_read_config_dword(target->pdev, target->msix + PCI_MSIX_TABLE, &place);
	return ioremap(pci_resource_start(target->pdev, place & PCI_MSIX_TABLE_BIR) +
		       (place & PCI_MSIX_TABLE_OFFSET), TARGET_VECTORS_BYTES);
}

static void mask_vectors(struct target *target)
{
	void __iomem *entry = target->vectors;
	u32 i;

	for (i = 0; i < target->num_vectors; i++, entry += PCI_MSIX_ENTRY_SIZE) {
		writel(NOWHERE, entry + PCI_MSIX_ENTRY_LOWER_ADDR);
		writel(PCI_MSIX_ENTRY_CTRL_MASKBIT, entry + PCI_MSIX_ENTRY_VECTOR_CTRL);
	}
}

static int add_target(struct targets *targets, struct pci_dev *pdev, u16 kind)
{
	struct target *target = &targets->target[targets->num];
	int status, i;

	if (targets->num == TARGETS_MAX)
		return -E2BIG;
	status = pci_enable_device(pdev);
	if (status)
		return status;
	targets->num++;
	target->pdev = pci_dev_get(pdev);
	target->kind = kind;
	for (i = 0; i < ARRAY_SIZE(target->header); i++)
		pci_read_config_dword(pdev, i * sizeof(u32), &target->header[i]);
	target->registers = pci_ioremap_bar(pdev, 0);
	target->vectors = map_vectors(target);
	target->area = alloc_pages_exact(TARGET_AREA_BYTES, GFP_KERNEL);
	if (!target->registers || !target->vectors || !target->area)
		return -ENOMEM;
	mask_vectors(target);
	target_fill(target, &targets->hostile->random);
	return 0;
}

static int add_virtio(struct targets *targets)
{
	struct pci_dev *pdev = NULL;
	int status;

	while ((pdev = pci_get_device(VIRTIO_VENDOR_ID, PCI_ANY_ID, pdev))) {
		u32 kind = pdev->device - VIRTIO_DEVICE_BASE;

		if (pdev->dev.driver)
			status = -EBUSY;
		else if (kind != VIRTIO_ID_NET && kind != VIRTIO_ID_BLOCK &&
			 kind != VIRTIO_ID_RNG && kind != VIRTIO_ID_BALLOON)
			status = -EOPNOTSUPP;
		else
			status = add_target(targets, pdev, kind);
		if (status) {
			pci_dev_put(pdev);
			return status;
		}
	}
	return targets->num ? 0 : -ENODEV;
}

static void __iomem *map_ecam(void)
{
	struct acpi_mcfg_allocation *bus;
	struct acpi_table_header *mcfg;
	void __iomem *ecam;

	if (ACPI_FAILURE(acpi_get_table(ACPI_SIG_MCFG, 0, &mcfg)))
		return NULL;
	bus = (void *)mcfg + sizeof(struct acpi_table_mcfg);
	ecam = ioremap(bus->address, TARGETS_ECAM_BYTES);
	acpi_put_table(mcfg);
	return ecam;
}

struct targets *targets_find(struct hostile *hostile)
{
	struct targets *targets = kzalloc(sizeof(*targets), GFP_KERNEL);
	int status = -ENOMEM;

	if (!targets)
		goto fail;
	targets->hostile = hostile;
	targets->ecam = map_ecam();
	if (!targets->ecam)
		goto fail;
	status = hostile_beyond() <= TARGETS_MAX_RAM ? add_virtio(targets) : -EFBIG;
	if (!status)
		status = add_target(targets, hostile->pdev, 0);
	if (!status)
		return targets;
fail:
	hostile_fail(hostile, "functions", 0, status);
	if (targets)
		targets_release(targets);
	return NULL;
}

static void release_target(struct target *target)
{
	bool is_off = true;

	if (target->kind && target->registers) {
		target_reset(target);
		is_off = target_status(target) == 0;
	}
	/* Memory that a device may still write to is lost. */
	if (is_off && target->area)
		free_pages_exact(target->area, TARGET_AREA_BYTES);
	if (target->vectors)
		iounmap(target->vectors);
	if (target->registers)
		iounmap(target->registers);
	pci_disable_device(target->pdev);
	pci_dev_put(target->pdev);
}

void targets_release(struct targets *targets)
{
	int i;

	for (i = 0; i < targets->num; i++)
		release_target(&targets->target[i]);
	/* It is the connector's again. */
	pci_set_master(targets->hostile->pdev);
	if (targets->ecam)
		iounmap(targets->ecam);
	kfree(targets);
}

static void restore(struct target *target)
{
	static const u8 offsets[] = {
		PCI_CACHE_LINE_SIZE, PCI_BASE_ADDRESS_0, PCI_BASE_ADDRESS_1, PCI_BASE_ADDRESS_2,
		PCI_BASE_ADDRESS_3, PCI_BASE_ADDRESS_4, PCI_BASE_ADDRESS_5, PCI_INTERRUPT_LINE,
		PCI_COMMAND,
	};
	u32 i;

	pci_write_config_word(target->pdev, target->msix + PCI_MSIX_FLAGS, 0);
	for (i = 0; i < ARRAY_SIZE(offsets); i++)
		pci_write_config_dword(target->pdev, offsets[i],
				       target->header[offsets[i] / sizeof(u32)]);
}

void targets_restore(struct targets *targets)
{
	int i;

	/* First all of them give up what they have, then each finds its place free. */
	for (i = 0; i < targets->num; i++)
		pci_write_config_word(targets->target[i].pdev, PCI_COMMAND, 0);
	for (i = 0; i < targets->num; i++)
		restore(&targets->target[i]);
}

void targets_rest(const struct targets *targets, u32 step)
{
	uint pause = targets->hostile->pause;

	if (step % STEPS_PER_REST == 0)
		usleep_range(pause, 2 * pause + 1);
}

static bool is_as_before(const struct target *target)
{
	u32 value;
	int i;

	for (i = 0; i < ARRAY_SIZE(target->header); i++) {
		pci_read_config_dword(target->pdev, i * sizeof(u32), &value);
		if (value != target->header[i])
			return false;
	}
	return true;
}

void targets_check(struct targets *targets, const char *what, u64 value)
{
	struct hostile *hostile = targets->hostile;
	struct target *target;
	int status, i;

	targets_restore(targets);
	for (i = 0; i < targets->num; i++) {
		target = &targets->target[i];
		/* The connector's are never let loose. */
		if (target->kind)
			mask_vectors(target);
		status = is_as_before(target) ? 0 : -ESTALE;
		if (!status)
			status = target->kind ? target_serve(target) : hostile_link_up(hostile);
		if (status < 0) {
			pr_err("vbus_hostile: %s does not come back\n", pci_name(target->pdev));
			hostile_fail(hostile, what, value, status);
			continue;
		}
		if (target->kind) {
			target_reset(target);
			target_fill(target, &hostile->random);
			hostile_count(hostile, &hostile->cases.harmless);
		} else {
			hostile_expect_harmless(hostile, what, value);
			hostile_reset(hostile);
		}
	}
}
