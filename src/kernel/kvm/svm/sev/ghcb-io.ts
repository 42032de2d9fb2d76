/**
 * MMIO and string port I/O of an SEV-ES guest, whose data lie in the scratch area (Linux arch/x86/kvm/x86.c: kvm_sev_es_mmio_write, kvm_sev_es_mmio_read,
 * kvm_sev_es_string_io).
 */
import { KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, KVM_PIO_PAGE_OFFSET } from '../../../../abi/kvm.ts';
import { IOIO } from '../../../../abi/vmcb.ts';
import { ERRNO } from '../../../../base/errors.ts';
import { GUEST_AGAIN, TO_USER_SPACE } from '../../run-result.ts';
import { setUpScratch } from './ghcb-scratch.ts';
import type { VcpuSev } from './vcpu-sev.ts';

const FRAGMENT = 8;
const PIO_BYTES = 4096;
const INT_MAX = 0x7fff_ffffn;

/** The MMIO read and write events: user space gets pieces of at most 8 bytes. */
export function answerMmio(sev: VcpuSev, access: 'read' | 'write'): number {
  const { info1, info2 } = sev.ghcb!.request;
  const length = Number(info2);
  if (length === 0) return GUEST_AGAIN;
  const scratch = setUpScratch(sev, length, access === 'read' ? 'kept' : 'dropped');
  if (typeof scratch === 'number') return scratch;
  const { kvmRun, apic } = sev.vcpu;
  const first = Number(info1);
  if (apic?.covers(first)) {
    const data = new Uint8Array(length);
    if (access === 'write') {
      scratch.read(0, data);
      apic.writePage(first, data);
    } else {
      apic.readPage(first, data);
      scratch.write(0, data);
    }
    return GUEST_AGAIN;
  }
  const piece = (done: number): number => {
    if (done >= length) return GUEST_AGAIN;
    const count = Math.min(FRAGMENT, length - done);
    const data = kvmRun.mmioData.subarray(0, count);
    kvmRun.exitReason = KVM_EXIT_MMIO;
    kvmRun.mmioPhysAddr = info1 + BigInt(done);
    kvmRun.mmioLen = count;
    kvmRun.mmioIsWrite = access === 'write' ? 1 : 0;
    if (access === 'write') scratch.read(done, data);
    sev.awaitUserSpace(() => {
      if (access === 'read') scratch.write(done, data);
      return piece(done + count);
    });
    return TO_USER_SPACE;
  };
  return piece(0);
}

/** INS and OUTS: as many elements an exit as the PIO page holds. */
export function stringIo(sev: VcpuSev): number {
  const { info1, info2 } = sev.ghcb!.request;
  const info = Number(info1 & 0xffff_ffffn);
  const size = (info >>> 4) & 7;
  if (size === 0) return GUEST_AGAIN;
  if (info2 * BigInt(size) > INT_MAX) return -ERRNO.EINVAL;
  const count = Number(info2);
  if (count === 0) return GUEST_AGAIN;
  const isIn = (info & IOIO.IN) !== 0;
  const scratch = setUpScratch(sev, count * size, isIn ? 'kept' : 'dropped');
  if (typeof scratch === 'number') return scratch;
  const { kvmRun } = sev.vcpu;
  const page = kvmRun.bytes.subarray(KVM_PIO_PAGE_OFFSET, KVM_PIO_PAGE_OFFSET + PIO_BYTES);
  const batch = (done: number): number => {
    if (done >= count) return GUEST_AGAIN;
    const elements = Math.min(Math.floor(PIO_BYTES / size), count - done);
    const data = page.subarray(0, elements * size);
    kvmRun.exitForIo(isIn ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT, size, info >>> 16, elements);
    if (!isIn) scratch.read(done * size, data);
    sev.awaitUserSpace(() => {
      if (isIn) scratch.write(done * size, data);
      return batch(done + elements);
    });
    return TO_USER_SPACE;
  };
  return batch(0);
}
