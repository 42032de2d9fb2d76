/** The ioctl fuzzer's SEV commands (KVM_MEMORY_ENCRYPT_OP): anything, or a launch in its right order. */
import type { KvmVcpu, KvmVm, SevCommand } from '../../../src/kernel/interface.ts';
import type { FuzzSubject } from './fuzz-subject.ts';

function aSevFd(subject: FuzzSubject): number {
  const fds = subject.process.files
    .open()
    .filter((fd) => subject.process.files.get(fd).operations.name === '/dev/sev');
  return subject.values.mostly(fds.at(-1) ?? 5, subject.fd());
}

export function sevCommand(subject: FuzzSubject): SevCommand | undefined {
  const v = subject.values;
  const sevFd = aSevFd(subject);
  const flags = v.oneIn(9) ? v.u16() : 0;
  switch (v.below(9)) {
    case 0:
      return undefined;
    case 1:
      return { id: v.u32(), sevFd } as SevCommand;
    case 2:
      return { id: 103, sevFd };
    case 3:
      return {
        id: 22,
        sevFd,
        data: {
          vmsaFeatures: v.mostly(0n, v.u64()),
          flags,
          ghcbVersion: v.mostly(2 * v.bit(), v.u16()),
        },
      };
    case 4:
      return {
        id: 100,
        sevFd,
        data: {
          policy: v.mostly(v.pick([0x30000n, 0xb0000n]), v.u64()),
          gosvw: v.bytes(16),
          flags,
        },
      };
    case 5: {
      const id = v.oneIn(3)
        ? { block: v.bytes(96), auth: v.bytes(4096), authorKeyEnabled: v.bit() === 1 }
        : undefined;
      return {
        id: 102,
        sevFd,
        data: { ...(id && { id }), vcekDisabled: v.bit() === 1, hostData: v.bytes(32), flags },
      };
    }
    default: {
      const uaddr = v.mostly(BigInt(subject.address()), v.u64());
      const len = v.mostly(v.pages(8), v.u64());
      return {
        id: 101,
        sevFd,
        data: {
          gfnStart: v.mostly(v.pages(64) / 4096n, v.u64()),
          uaddr: subject.spares(Number(uaddr), Number(len)) ? uaddr : 0x10000n,
          len,
          type: v.mostly(v.pick([1, 3, 4, 5, 6]), v.u8()),
          flags,
        },
      };
    }
  }
}

/** The launch of an SNP guest in its right order, so that what comes after it is reached. */
export function prepareSnp(subject: FuzzSubject, vm: KvmVm, vcpus: KvmVcpu[]): void {
  const v = subject.values;
  const steps: (() => void)[] = [
    () =>
      vm.memoryEncryptOp({
        id: 22,
        sevFd: aSevFd(subject),
        data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 2 },
      }),
    () => void (vcpus.length === 0 && vcpus.push(vm.createVcpu(0))),
    () =>
      vm.memoryEncryptOp({
        id: 100,
        sevFd: aSevFd(subject),
        data: { policy: 0x30000n, gosvw: new Uint8Array(16), flags: 0 },
      }),
    () => vm.setMemoryAttributes({ address: 0n, size: 0x10000n, attributes: 8n, flags: 0n }),
    () => {
      const uaddr = BigInt(subject.address());
      if (subject.spares(Number(uaddr), 0x10000))
        vm.memoryEncryptOp({
          id: 101,
          sevFd: aSevFd(subject),
          data: { gfnStart: 0n, uaddr, len: 0x8000n, type: v.pick([1, 3]), flags: 0 },
        });
    },
    () =>
      vm.memoryEncryptOp({
        id: 102,
        sevFd: aSevFd(subject),
        data: { vcekDisabled: false, hostData: new Uint8Array(32), flags: 0 },
      }),
  ];
  for (const [index, step] of steps.entries())
    if (!v.oneIn(12)) subject.log.call(`SNP launch, step ${index}`, '', step);
}
