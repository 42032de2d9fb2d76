/** Values that no field of an ioctl's structure can hold: no caller of the real kernel can ask for them, so they are refused before the kernel's own checks. */
import { describe, expect, it } from 'vitest';
import {
  kvm_clear_dirty_log,
  kvm_create_guest_memfd,
  kvm_memory_attributes,
  kvm_pre_fault_memory,
} from '../../../src/abi/kvm-structs.ts';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { Chip } from '../../../src/hardware/chip.ts';
import { createKernel } from '../../../src/kernel/kvm/index.ts';
import { encodeRegion, encodeRegion2 } from '../../../src/linux/kvm-encoding.ts';
import { sevIssueArgument } from '../../../src/linux/sev-issue-command.ts';
import { startVm, type TestVm } from './vm-fixture.ts';

const U32 = 'want an integer from 0 to 4294967295';
const U64 = 'want an integer from 0 to 18446744073709551615';

const region = {
  slot: 1,
  flags: 0,
  guestPhysAddr: 0x10_0000n,
  memorySize: 0x1000n,
  userspaceAddr: 0x7000_0000_0000n,
  guestMemfdOffset: 0n,
  guestMemfd: 0,
};
const attributes = { address: 0x10_0000n, size: 0x1000n, attributes: 8n, flags: 0n };
const range = { gpa: 0x20_0000n, size: 0x1000n, flags: 0n };
const file = { size: 0x1000n, flags: 0n };
const clear = { slot: 0, bitmap: new Int32Array(2), firstPage: 0n, numPages: 16 };
type Fields = Readonly<Record<string, unknown>>;

/** A call, its good argument, its structure, and how the real backend encodes it. */
const CALLS: Record<
  string,
  {
    good: Fields;
    struct: string;
    ask: (at: TestVm, request: never) => unknown;
    encode: (request: never) => unknown;
  }
> = {
  setUserMemoryRegion: {
    good: region,
    struct: 'kvm_userspace_memory_region',
    ask: ({ vm }, request) => vm.setUserMemoryRegion(request),
    encode: encodeRegion,
  },
  setUserMemoryRegion2: {
    good: region,
    struct: 'kvm_userspace_memory_region2',
    ask: ({ vm }, request) => vm.setUserMemoryRegion2(request),
    encode: encodeRegion2,
  },
  setMemoryAttributes: {
    good: attributes,
    struct: 'kvm_memory_attributes',
    ask: ({ vm }, request) => vm.setMemoryAttributes(request),
    encode: kvm_memory_attributes.encode,
  },
  createGuestMemfd: {
    good: file,
    struct: 'kvm_create_guest_memfd',
    ask: ({ vm }, request) => vm.createGuestMemfd(request),
    encode: kvm_create_guest_memfd.encode,
  },
  preFaultMemory: {
    good: range,
    struct: 'kvm_pre_fault_memory',
    ask: ({ vcpu }, request) => vcpu.preFaultMemory(request),
    encode: kvm_pre_fault_memory.encode,
  },
  clearDirtyLog: {
    good: clear,
    struct: 'kvm_clear_dirty_log',
    ask: ({ vm }, request) => vm.clearDirtyLog(request),
    encode: ({ slot, firstPage, numPages }: typeof clear) =>
      kvm_clear_dirty_log.encode({ slot, first_page: firstPage, num_pages: numPages }),
  },
};

/** A field of type u64, and its name in C. */
const LONGS: [call: string, field: string, member: string][] = [
  ['setUserMemoryRegion', 'guestPhysAddr', 'guest_phys_addr'],
  ['setUserMemoryRegion', 'memorySize', 'memory_size'],
  ['setUserMemoryRegion', 'userspaceAddr', 'userspace_addr'],
  ['setUserMemoryRegion2', 'guestPhysAddr', 'guest_phys_addr'],
  ['setUserMemoryRegion2', 'memorySize', 'memory_size'],
  ['setUserMemoryRegion2', 'userspaceAddr', 'userspace_addr'],
  ['setUserMemoryRegion2', 'guestMemfdOffset', 'guest_memfd_offset'],
  ['setMemoryAttributes', 'address', 'address'],
  ['setMemoryAttributes', 'size', 'size'],
  ['setMemoryAttributes', 'attributes', 'attributes'],
  ['setMemoryAttributes', 'flags', 'flags'],
  ['createGuestMemfd', 'size', 'size'],
  ['createGuestMemfd', 'flags', 'flags'],
  ['preFaultMemory', 'gpa', 'gpa'],
  ['preFaultMemory', 'size', 'size'],
  ['preFaultMemory', 'flags', 'flags'],
  ['clearDirtyLog', 'firstPage', 'first_page'],
];
const WORDS: typeof LONGS = [
  ['setUserMemoryRegion', 'slot', 'slot'],
  ['setUserMemoryRegion', 'flags', 'flags'],
  ['setUserMemoryRegion2', 'slot', 'slot'],
  ['setUserMemoryRegion2', 'flags', 'flags'],
  ['clearDirtyLog', 'slot', 'slot'],
  ['clearDirtyLog', 'numPages', 'num_pages'],
];

function start(): TestVm {
  const at = startVm();
  at.setRegion({ flags: 1 });
  return at;
}

describe.each(LONGS)('%s with %s', (call, field, member) => {
  const { good, struct, ask, encode } = CALLS[call]!;
  it.each([
    [-0x1000n, RangeError, `got -4096, ${U64}`],
    [1n << 64n, RangeError, `got 18446744073709551616, ${U64}`],
    [(1n << 64n) + 0x1000n, RangeError, `got 18446744073709555712, ${U64}`],
    [4096, TypeError, 'got the number 4096, want a bigint'],
    ['4096', TypeError, 'got the string 4096, want a bigint'],
  ])('%s is refused, as the real backend refuses it', (value, kind, words) => {
    const error = new kind(`${struct}.${member}: ${words}`);
    const request = { ...good, [field]: value } as never;
    expect(() => ask(start(), request)).toThrow(error);
    expect(() => encode(request)).toThrow(error);
  });
});

describe.each(WORDS)('%s with %s', (call, field, member) => {
  const { good, struct, ask } = CALLS[call]!;
  it.each([
    [-1, RangeError, `got -1, ${U32}`],
    [Number.NaN, RangeError, `got NaN, ${U32}`],
    [0.5, RangeError, `got 0.5, ${U32}`],
    [2 ** 32, RangeError, `got 4294967296, ${U32}`],
    ['1', TypeError, 'got the string 1, want a number'],
    [1n, TypeError, 'got the bigint 1, want a number'],
  ])('%s is refused', (value, kind, words) => {
    const request = { ...good, [field]: value } as never;
    expect(() => ask(start(), request)).toThrow(new kind(`${struct}.${member}: ${words}`));
  });
});

describe('an argument that is a number', () => {
  it.each([
    [Number.NaN, RangeError, 'got NaN, want an integer'],
    [0.5, RangeError, 'got 0.5, want an integer'],
    ['0', TypeError, 'got the string 0, want a number'],
    [0n, TypeError, 'got the bigint 0, want a number'],
  ])('%s is no VM type, no vCPU id', (value, kind, words) => {
    const { kvm, vm } = start();
    vm.createVcpu(0);
    expect(() => kvm.createVm(value as never)).toThrow(new kind(`KVM_CREATE_VM.type: ${words}`));
    expect(() => vm.createVcpu(value as never)).toThrow(new kind(`KVM_CREATE_VCPU.id: ${words}`));
    expect(() => vm.createVcpu(-1)).toThrow('EINVAL');
    expect(() => kvm.createVm(-1)).toThrow('EINVAL');
  });

  it.each([
    [-1, RangeError, `got -1, ${U32}`],
    [Number.NaN, RangeError, `got NaN, ${U32}`],
    ['3', TypeError, 'got the string 3, want a number'],
  ])('%s is no interrupt', (value, kind, words) => {
    const { vcpu } = start();
    expect(() => vcpu.interrupt(value as never)).toThrow(new kind(`kvm_interrupt.irq: ${words}`));
    expect(vcpu.getVcpuEvents().interrupt.injected).toBe(0);
  });
});

describe('KVM_MEMORY_ENCRYPT_OP', () => {
  const finish = { vcekDisabled: false, hostData: new Uint8Array(32), flags: 0 };
  const id = { block: new Uint8Array(96), auth: new Uint8Array(4096), authorKeyEnabled: false };
  const update = { gfnStart: 0n, uaddr: 0n, len: 0x1000n, type: 1, flags: 0 };
  it.each([
    [{ id: 2 ** 32 }, `kvm_sev_cmd.id: got 4294967296, ${U32}`],
    [
      { id: 103, sevFd: Number.NaN },
      'kvm_sev_cmd.sevFd: got NaN, want an integer from -2147483648 to 2147483647',
    ],
    [{ id: 22 }, 'kvm_sev_init: got undefined, want a structure'],
    [
      { id: 22, data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 0x1_0000 } },
      'kvm_sev_init.ghcbVersion: got 65536, want an integer from 0 to 65535',
    ],
    [
      { id: 22, data: { vmsaFeatures: -1n, flags: 0, ghcbVersion: 2 } },
      `kvm_sev_init.vmsaFeatures: got -1, ${U64}`,
    ],
    [
      { id: 100, data: { policy: 0x30000n, gosvw: new Uint8Array(17), flags: 0 } },
      'kvm_sev_snp_launch_start.gosvw: got 17 bytes, want at most 16',
    ],
    [
      { id: 101, data: { ...update, type: 256 } },
      'kvm_sev_snp_launch_update.type: got 256, want an integer from 0 to 255',
    ],
    [
      { id: 101, data: { ...update, len: 1n << 64n } },
      `kvm_sev_snp_launch_update.len: got ${1n << 64n}, ${U64}`,
    ],
    [
      { id: 102, data: { ...finish, flags: 0.5 } },
      'kvm_sev_snp_launch_finish.flags: got 0.5, want an integer from 0 to 65535',
    ],
    [
      { id: 102, data: { ...finish, hostData: new Uint8Array(33) } },
      'kvm_sev_snp_launch_finish.hostData: got 33 bytes, want at most 32',
    ],
    [
      { id: 102, data: { ...finish, id: { ...id, block: new Uint8Array(97) } } },
      'kvm_sev_snp_launch_finish.id.block: got 97 bytes, want at most 96',
    ],
    [
      { id: 102, data: { ...finish, id: { ...id, auth: new Uint8Array(4097) } } },
      'kvm_sev_snp_launch_finish.id.auth: got 4097 bytes, want at most 4096',
    ],
  ])('refuses %o', (command, words) => {
    const kernel = createKernel({
      memory: 64 << 20,
      chip: new Chip({ generation: 'milan', entropy: seededEntropy(3) }),
    });
    const vm = kernel.newProcess().openKvm().createVm(4);
    expect(() => vm.memoryEncryptOp({ sevFd: 3, ...command } as never)).toThrow(words);
    kernel.close();
  });
});

describe('SEV_ISSUE_CMD', () => {
  it.each([
    [-1, `sev_issue_cmd.cmd: got -1, ${U32}`],
    [2 ** 32 + 9, `sev_issue_cmd.cmd: got 4294967305, ${U32}`],
    ['9', 'sev_issue_cmd.cmd: got the string 9, want a number'],
  ])('refuses command %s, as the real backend does', (cmd, words) => {
    const chip = new Chip({ generation: 'milan', entropy: seededEntropy(3) });
    const kernel = createKernel({ memory: 64 << 20, chip });
    const process = kernel.newProcess();
    const command = { cmd: cmd as number, data: new Uint8Array(32) };
    const fd = process.openSev();
    expect(() => process.sevIssueCommand(fd, command)).toThrow(words);
    expect(() => sevIssueArgument(command, () => 0n)).toThrow(words);
    kernel.close();
  });
});
