/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the marks of a memslot with KVM_MEM_USERFAULT allow, as the helper in
 * Rust finds it, see userfault.rs.  Without the helper, the answers that hold
 * whatever the marks are.
 */

#ifndef __ARM64_KVM_USERFAULT_H__
#define __ARM64_KVM_USERFAULT_H__

#include <linux/bits.h>
#include <linux/errno.h>
#include <linux/sizes.h>
#include <linux/types.h>

#include <asm/page.h>

/*
 * The marks of a memslot, chunk by chunk: each is read at once, without a lock,
 * and then gives the runs of marked pages.
 */
struct kvm_userfault_cursor {
	/* The memslot. */
	const u8 __user *bitmap;
	u64 base_gfn;
	u64 npages;

	/* The run that was found last. */
	u64 run_gfn;
	u64 run_npages;

	/* Where in the chunk to look for the next run. C may move it on. */
	u64 next_gfn;

	/*
	 * The chunk. No page size has more pages in a step of
	 * stage2_apply_range() than 4K, and the first mark can be anywhere in
	 * its byte.
	 */
	u64 chunk_gfn;
	u64 chunk_npages;
	unsigned long marks[SZ_1G / SZ_4K / BITS_PER_LONG + 1];
};

#ifdef CONFIG_KVM_ARM64_USERFAULT_HELPER
/* The size of a mapping of @gfn, a page or a block.  May sleep. */
u64 kvm_userfault_map_size(const u8 __user *bitmap, u64 base_gfn, u64 npages,
			   u64 gfn);
/* Reads the marks of some pages.  Returns 0, or -EFAULT.  May sleep. */
int kvm_userfault_next_chunk(struct kvm_userfault_cursor *cursor, u64 gfn,
			     u64 npages);
/* Finds the next run.  Returns 1, 0 if there is none, or -EINVAL. */
int kvm_userfault_next_run(struct kvm_userfault_cursor *cursor);
#else
static inline u64 kvm_userfault_map_size(const u8 __user *bitmap, u64 base_gfn,
					 u64 npages, u64 gfn)
{
	return PAGE_SIZE;
}

static inline int kvm_userfault_next_chunk(struct kvm_userfault_cursor *cursor,
					   u64 gfn, u64 npages)
{
	return -EINVAL;
}

static inline int kvm_userfault_next_run(struct kvm_userfault_cursor *cursor)
{
	return -EINVAL;
}
#endif

#endif /* __ARM64_KVM_USERFAULT_H__ */
