/** KVM_GET_SUPPORTED_CPUID and KVM_GET_CPUID2, which fill an array whose length the caller must guess (linux/kvm.h, kvm_cpuid2). */
import { LinuxError } from '../base/errors.ts';
import type { CpuidEntry } from '../kernel/interface.ts';
import { decodeCpuid, encodeCpuid } from './kvm-encoding.ts';
import type { Libc } from './libc.ts';

/** Entries of CPUID to ask for first; the kernel has KVM_MAX_CPUID_ENTRIES, 256. */
const CPUID_ROOM = 256;

/** Asked again with more room while the kernel says E2BIG. */
export function getCpuid(libc: Libc, fd: number, request: number, what: string): CpuidEntry[] {
  for (let room = CPUID_ROOM; ; room *= 2) {
    const bytes = encodeCpuid([], room);
    try {
      libc.ioctlBytes(fd, request, bytes, what);
      return decodeCpuid(bytes);
    } catch (error) {
      if (!(error instanceof LinuxError) || error.code !== 'E2BIG' || room >= 16 * CPUID_ROOM) throw error;
    }
  }
}
