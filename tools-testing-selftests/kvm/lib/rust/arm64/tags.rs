// SPDX-License-Identifier: GPL-2.0-only

//! The tags of FEAT_MTE that a guest's memory has.

use crate::*;

// SAFETY: This takes what api.rst has for it. The address is of as many bytes as there are tags.
const ARM_MTE_COPY_TAGS: Ioctl<bindings::kvm_arm_copy_mte_tags> =
    unsafe { Ioctl::new(bindings::LIBKVM_ARM_MTE_COPY_TAGS) };

impl Slot {
    /// Sets all tags of a page.
    #[track_caller]
    pub fn set_tags(&self, page: Page, tag: u8) {
        let mut tags = vec![tag; page_size() / 16];
        self.copy_tags(page, &mut tags, bindings::KVM_ARM_TAGS_TO_GUEST);
    }

    /// Returns the tags of a page, one for each 16 bytes.
    #[track_caller]
    pub fn tags(&self, page: Page) -> Vec<u8> {
        let mut tags = vec![0; page_size() / 16];
        self.copy_tags(page, &mut tags, bindings::KVM_ARM_TAGS_FROM_GUEST);
        tags
    }

    #[track_caller]
    fn copy_tags(&self, page: Page, tags: &mut [u8], direction: u32) {
        self.inside(page);
        let mut copy = bindings::kvm_arm_copy_mte_tags {
            guest_ipa: self.gpa(page).0,
            length: (tags.len() * 16) as u64,
            flags: direction.into(),
            ..Default::default()
        };
        copy.addr = tags.as_mut_ptr().cast();
        ARM_MTE_COPY_TAGS
            .call(self.vm().fd(), &mut copy)
            .expect("KVM_ARM_MTE_COPY_TAGS failed");
    }
}
