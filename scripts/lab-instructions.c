/*
 * A plugin of QEMU that counts the instructions that each processor of scripts/lab executes, for the
 * host and for guests in it, and shows the counts to the host: `scripts/lab --instructions`.
 *
 * Build: cc -O2 -Wall -Wextra -shared -fPIC -o FILE.so scripts/lab-instructions.c
 * Use:   qemu-system-x86_64 -plugin FILE.so,page=PAGE
 *
 * PAGE is a file that the host has as the memory of a PCI device (ivshmem-plain). Whoever wants to know
 * the counts there executes MARK, a NOP that nobody else has a use for, and then reads PAGE:
 *
 *   offset 0            MAGIC, once there are counts
 *   offset 8            number of processors
 *   offset 64 + 64 * I  struct counts of processor I
 *
 * All are 64 bits, little endian. src/bench/instructions.rs reads them.
 *
 * A block of code is counted when it is entered, so what a fault or an exit keeps from being executed is
 * counted as well. Repeated string instructions (REP MOVS) count once for each time that they are entered,
 * not for each repetition.
 *
 * The header of QEMU's plugins is packaged nowhere, so what is used of version 4 of it, which QEMU 10.0
 * has, is declared here.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_scoreboard;
typedef struct {
	struct qemu_plugin_scoreboard *score;
	size_t offset;
} qemu_plugin_u64;
enum { CALLBACK_NEEDS_NO_REGISTERS = 0, INLINE_ADD = 0 };
typedef void (*on_execution)(unsigned int cpu, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*callback)(uint64_t, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t idx);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *to, size_t bytes);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, on_execution, int flags, void *data);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *, int op, qemu_plugin_u64, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, on_execution, int flags, void *data);
struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t bytes);
void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *, unsigned int cpu);
int qemu_plugin_num_vcpus(void);

EXPORT int qemu_plugin_version = 4;

enum { MAX_CPUS = 65, MAX_RUNS = 8, PAGE_BYTES = 8192 };
static const uint64_t MAGIC = 0x736e736e69636c61; /* "alcinsns" */
static const uint8_t MARK[] = { 0x0f, 0x1f, 0x84, 0x00, 'a', 'l', 'c', 'k' }; /* nopl 0x6b636c61(%rax,%rax,1) */
static const uint8_t VMRUN[] = { 0x0f, 0x01, 0xd8 };

struct counts { /* instructions, and how often a guest was entered */
	uint64_t host_user, host_kernel, guest_user, guest_kernel, entries;
	uint64_t reserved[3];
};
struct page {
	uint64_t magic, num_cpus, reserved[6];
	struct counts cpus[MAX_CPUS];
};
_Static_assert(sizeof(struct page) <= PAGE_BYTES, "the file is larger");

/* Of one processor. */
struct tally {
	uint64_t user, kernel;                 /* all, in the lower and in the upper half of addresses */
	uint64_t guest_user, guest_kernel;     /* of these, in guests that were left */
	uint64_t entered_user, entered_kernel; /* all, when a guest was entered */
	uint64_t entries;
	bool is_in_guest;
};
static struct qemu_plugin_scoreboard *tallies;
static struct page *page;
/* The addresses that a processor goes on at when it has left a guest: those behind each VMRUN. */
static uint64_t after_run[MAX_RUNS];
static size_t num_after_run;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of after_run, and of writing to page */

static void leave_guest(struct tally *tally, uint64_t *user, uint64_t *kernel)
{
	*user += tally->user - tally->entered_user;
	*kernel += tally->kernel - tally->entered_kernel;
}

static void on_run(unsigned int cpu, void *data)
{
	struct tally *tally = qemu_plugin_scoreboard_find(tallies, cpu);

	(void)data;
	tally->is_in_guest = true;
	tally->entered_user = tally->user;
	tally->entered_kernel = tally->kernel;
	tally->entries++;
}

static void on_after_run(unsigned int cpu, void *data)
{
	struct tally *tally = qemu_plugin_scoreboard_find(tallies, cpu);

	(void)data;
	if (tally->is_in_guest)
		leave_guest(tally, &tally->guest_user, &tally->guest_kernel);
	tally->is_in_guest = false;
}

/* Others may execute while this reads their tallies: each count is one that they had since the mark. */
static void on_mark(unsigned int cpu, void *data)
{
	int num_cpus = qemu_plugin_num_vcpus();

	(void)cpu;
	(void)data;
	pthread_mutex_lock(&lock);
	for (int i = 0; i < num_cpus && i < MAX_CPUS; i++) {
		struct tally tally = *(struct tally *)qemu_plugin_scoreboard_find(tallies, i);
		volatile struct counts *counts = &page->cpus[i];

		if (tally.is_in_guest)
			leave_guest(&tally, &tally.guest_user, &tally.guest_kernel);
		counts->host_user = tally.user - tally.guest_user;
		counts->host_kernel = tally.kernel - tally.guest_kernel;
		counts->guest_user = tally.guest_user;
		counts->guest_kernel = tally.guest_kernel;
		counts->entries = tally.entries;
	}
	page->num_cpus = num_cpus;
	pthread_mutex_unlock(&lock);
}

static bool is_after_run(uint64_t address)
{
	bool is_one = false;

	for (size_t i = 0; i < num_after_run; i++)
		is_one |= after_run[i] == address;
	return is_one;
}

static void on_translation(uint64_t id, struct qemu_plugin_tb *tb)
{
	size_t num = qemu_plugin_tb_n_insns(tb);
	bool is_kernel = qemu_plugin_tb_vaddr(tb) >> 63;
	qemu_plugin_u64 all = { tallies, is_kernel ? offsetof(struct tally, kernel) : offsetof(struct tally, user) };

	(void)id;
	pthread_mutex_lock(&lock);
	/* Before this block is counted, which is no longer the guest's. */
	if (is_after_run(qemu_plugin_tb_vaddr(tb)))
		qemu_plugin_register_vcpu_tb_exec_cb(tb, on_after_run, CALLBACK_NEEDS_NO_REGISTERS, NULL);
	qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, INLINE_ADD, all, num);
	for (size_t i = 0; i < num; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint8_t bytes[sizeof(MARK)];
		size_t size = qemu_plugin_insn_data(insn, bytes, sizeof(bytes));
		uint64_t next = qemu_plugin_insn_vaddr(insn) + size;

		if (size == sizeof(MARK) && !memcmp(bytes, MARK, size)) {
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mark, CALLBACK_NEEDS_NO_REGISTERS, NULL);
		} else if (size == sizeof(VMRUN) && !memcmp(bytes, VMRUN, size)) {
			if (!is_after_run(next) && num_after_run < MAX_RUNS)
				after_run[num_after_run++] = next;
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_run, CALLBACK_NEEDS_NO_REGISTERS, NULL);
		}
	}
	pthread_mutex_unlock(&lock);
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	int file;

	(void)info;
	if (argc != 1 || strncmp(argv[0], "page=", 5)) {
		fprintf(stderr, "lab-instructions: the one argument is page=FILE\n");
		return -1;
	}
	file = open(argv[0] + 5, O_RDWR | O_CLOEXEC);
	page = file < 0 ? MAP_FAILED : mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (page == MAP_FAILED) {
		perror("lab-instructions: cannot map the page");
		return -1;
	}
	close(file);
	page->magic = MAGIC;
	tallies = qemu_plugin_scoreboard_new(sizeof(struct tally));
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	return 0;
}
