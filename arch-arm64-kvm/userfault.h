/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The boundary between KVM/arm64's C code and its userfault helper in Rust.
 *
 * Kept free of kvm_host.h on purpose: rust/bindings/bindings_helper.h includes
 * this file, and whatever it includes becomes part of the Rust bindings.
 */
#ifndef __ARM64_KVM_USERFAULT_H__
#define __ARM64_KVM_USERFAULT_H__

#include <linux/types.h>

/* The largest size in bytes, at most @size, that a mapping of @gfn may have. */
u64 kvm_userfault_map_size(const u8 __user *bitmap, u64 base_gfn, u64 npages,
			   u64 gfn, u64 size);

/* enum kvm_mr_change, in the same order. */
enum kvm_userfault_change {
	KVM_USERFAULT_CREATE,
	KVM_USERFAULT_DELETE,
	KVM_USERFAULT_MOVE,
	KVM_USERFAULT_FLAGS_ONLY,
};

/* What a committed change of a memslot leaves to be invalidated. */
enum kvm_userfault_invalidation {
	KVM_USERFAULT_INVALIDATE_NOTHING,
	KVM_USERFAULT_INVALIDATE_SLOT,
	KVM_USERFAULT_INVALIDATE_MARKED,
};

struct kvm;

enum kvm_userfault_invalidation
kvm_userfault_commit(bool was_userfault, bool is_userfault,
		     enum kvm_userfault_change change);
bool kvm_userfault_unmap_marked(struct kvm *kvm, const u8 __user *bitmap,
				u64 base_gfn, u64 npages);

/* Called by the helper, and part of mmu.c. */
u64 kvm_userfault_skip_unmapped(struct kvm *kvm, u64 gfn);
void kvm_userfault_unmap(struct kvm *kvm, u64 gfn, u64 npages);

#endif /* __ARM64_KVM_USERFAULT_H__ */
