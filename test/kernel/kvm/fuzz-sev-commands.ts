/** The ioctl fuzzer's SEV commands (KVM_MEMORY_ENCRYPT_OP): anything, or a launch in its right order. */
import type { KvmVcpu, KvmVm, SevCommand, SevIssueCommand } from '../../../src/kernel/interface.ts';
import type { FuzzSubject } from './fuzz-subject.ts';

export function aSevFd(subject: FuzzSubject): number {
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
      return { id: v.rough(v.mostly(v.pick([22, 100, 101, 102, 103]), v.u32())), sevFd } as SevCommand;
    case 2:
      return { id: 103, sevFd };
    case 3:
      return {
        id: 22,
        sevFd,
        data: {
          vmsaFeatures: v.rough(v.mostly(0n, v.u64())),
          flags: v.rough(flags),
          ghcbVersion: v.rough(v.mostly(2 * v.bit(), v.u16())),
        },
      };
    case 4:
      return {
        id: 100,
        sevFd,
        data: {
          policy: v.rough(v.mostly(v.pick([0x30000n, 0xb0000n]), v.u64())),
          gosvw: v.bytes(v.mostly(16, v.below(20))),
          flags,
        },
      };
    case 5: {
      const id = v.oneIn(3)
        ? {
            block: v.bytes(v.mostly(96, v.below(100))),
            auth: v.bytes(v.mostly(4096, v.below(4100))),
            authorKeyEnabled: v.bit() === 1,
          }
        : undefined;
      return {
        id: 102,
        sevFd,
        data: {
          ...(id && { id }),
          vcekDisabled: v.bit() === 1,
          hostData: v.bytes(v.mostly(32, v.below(40))),
          flags,
        },
      };
    }
    default: {
      const uaddr = v.mostly(BigInt(subject.address()), v.u64());
      const len = v.mostly(v.pages(8), v.u64());
      return {
        id: 101,
        sevFd,
        data: {
          gfnStart: v.rough(v.mostly(v.pages(64) / 4096n, v.u64())),
          uaddr: subject.spares(Number(uaddr), Number(len)) ? uaddr : 0x10000n,
          len,
          type: v.rough(v.mostly(v.pick([1, 3, 4, 5, 6]), v.u8())),
          flags: v.rough(flags),
        },
      };
    }
  }
}

/** Bytes that each command's data has; of others, anything. */
const DATA_BYTES = [0, 12, 0, 12, 0, 32, 32, 128, 12, 32, 0, 64, 16];
const ID_BYTES = [0, 64, 127, 128, 129];
const WRAPPED_VLEK_BYTES = 432;

/** SEV_ISSUE_CMD of /dev/sev: any command, data of the right length or another, at any alignment, with an address in it or none. */
export function sevIssueCommand(subject: FuzzSubject): SevIssueCommand {
  const v = subject.values;
  const cmd = v.rough(v.mostly(v.below(14), v.u32()));
  const bytes = (length: number): Uint8Array => {
    const at = v.below(9);
    return v.bytes(at + length).subarray(at);
  };
  const data = bytes(v.mostly(DATA_BYTES[cmd] ?? 16, v.below(140)));
  const blob = bytes(v.pick([WRAPPED_VLEK_BYTES, v.pick(ID_BYTES), v.below(500)]));
  if (data.length >= 12 && v.bit() === 1) {
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    if (cmd === 12) {
      view.setUint32(0, v.mostly(16, v.u32()), true);
      view.setUint32(4, 0, true);
    } else {
      view.setBigUint64(0, v.bit() === 1 ? 0n : v.u64(), true);
      view.setUint32(8, v.pick([...ID_BYTES, v.u32()]), true);
    }
  }
  return { cmd, ...(!v.oneIn(6) && { data }), ...(!v.oneIn(4) && { blob }) };
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
