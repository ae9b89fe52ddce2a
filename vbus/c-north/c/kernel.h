/* SPDX-License-Identifier: GPL-2.0 */
/* What ring.c and vbus_ring.h use of the kernel, for a program on a little-endian machine. */
#ifndef KERNEL_H
#define KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "byte order"
#endif

typedef uint8_t u8, __u8;
typedef uint16_t u16, __le16;
typedef uint32_t u32, __le32;
typedef int32_t s32;
typedef uint64_t u64, __le64, phys_addr_t;

#define U32_MAX UINT32_MAX
#define EINVAL 22
#define ENOMEM 12
#define EPROTO 71

#define unlikely(condition) __builtin_expect(!!(condition), 0)
#define BUILD_BUG_ON(condition) _Static_assert(!(condition), #condition)
#define ____cacheline_aligned_in_smp __attribute__((aligned(64)))
#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define EXPORT_SYMBOL_GPL(name) _Static_assert(1, #name)
#define pr_err(...) __builtin_printf(__VA_ARGS__)

#define cpu_to_le16(value) ((__le16)(value))
#define cpu_to_le32(value) ((__le32)(value))
#define cpu_to_le64(value) ((__le64)(value))
#define le16_to_cpu(value) ((u16)(value))
#define le32_to_cpu(value) ((u32)(value))
#define le64_to_cpu(value) ((u64)(value))

#define READ_ONCE(place) (*(const volatile __typeof__(place) *)&(place))
#define WRITE_ONCE(place, value) (*(volatile __typeof__(place) *)&(place) = (value))
#define smp_load_acquire(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
#define smp_store_release(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
#define virt_load_acquire smp_load_acquire
#define virt_store_release smp_store_release
#define virt_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xchg(place, value) __atomic_exchange_n(place, value, __ATOMIC_SEQ_CST)

/* Members of structs of the bus that a ring does not use, but has beside it. */
struct device { void *drvdata; };
struct device_driver { const char *name; };
struct module;
struct mutex { int unused; };
struct rw_semaphore { int unused; };
struct xarray { int unused; };
struct rcu_head { int unused; };
struct completion { bool done; };
struct list_head { struct list_head *next, *prev; };

static inline void *dev_get_drvdata(const struct device *dev)
{
	return dev->drvdata;
}

static inline void dev_set_drvdata(struct device *dev, void *data)
{
	dev->drvdata = data;
}

static inline bool completion_done(const struct completion *completion)
{
	return completion->done;
}

static inline bool list_empty(const struct list_head *head)
{
	return head->next == head;
}

static inline bool is_power_of_2(unsigned long n)
{
	return n && !(n & (n - 1));
}

#define ilog2(n) ((u32)(31 - __builtin_clz(n)))

#define ERR_PTR(error) ((void *)(long)(error))
#define IS_ERR(ptr) ((unsigned long)(ptr) >= -4095UL)
#define IS_ERR_OR_NULL(ptr) (!(ptr) || IS_ERR(ptr))

#define GFP_KERNEL 0
#define __GFP_ZERO 0
#define __GFP_NOWARN 0
#define memset __builtin_memset
#define memcpy __builtin_memcpy
void *aligned_alloc(size_t alignment, size_t bytes);
void free(void *memory);
char *strdup(const char *text);
#define kstrdup(text, flags) strdup(text)
#define kfree(memory) free((void *)(memory))
#define kfree_rcu(memory, member) free(memory)

static inline void *kzalloc(size_t bytes, int flags)
{
	size_t rounded = (bytes + 63) & ~63UL;
	void *memory = aligned_alloc(64, rounded);

	return memory ? memset(memory, 0, rounded) : NULL;
}

/* Shared memory is the test's. */
void *north_alloc_pages(size_t bytes);
void north_free_pages(void *memory);
#define alloc_pages_exact(bytes, flags) north_alloc_pages(bytes)
#define free_pages_exact(memory, bytes) north_free_pages(memory)
#define virt_to_phys(memory) ((phys_addr_t)(uintptr_t)(memory))

#endif /* KERNEL_H */
