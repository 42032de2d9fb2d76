/**
 * The order in which ioctls check is observable: what violates a rule and any later one fails by the earlier. Where both have the
 * same errno the message tells which it was.
 */
import { describe, expect, it } from 'vitest';
import { LinuxError } from '../../../src/base/errors.ts';
import type { UserMemoryRegion2 } from '../../../src/kernel/interface.ts';
import { failure } from '../process-fixture.ts';
import { BOTH_KERNELS, startVm, type TestVm } from './vm-fixture.ts';

/** A rule, and what must be done to a good request to break it: a field gets a value, or bits are added to it. */
interface Rule<Request> {
  readonly rule: string;
  readonly errno: string;
  readonly field: keyof Request;
  readonly value?: number | bigint;
  readonly bits?: number | bigint;
  /** Later rules that then are not broken, or break an earlier one. */
  readonly without?: readonly string[];
}

function broken<Request extends object>(request: Request, rules: readonly Rule<Request>[]): Request {
  const result = { ...request };
  const set = (field: keyof Request, value: number | bigint): void => {
    result[field] = value as Request[keyof Request];
  };
  for (const { field, value } of rules) if (value !== undefined) set(field, value);
  for (const { field, bits } of rules) {
    if (typeof bits === 'bigint') set(field, (result[field] as bigint) | bits);
    else if (bits !== undefined) set(field, ((result[field] as number) | bits) >>> 0);
  }
  return result;
}

/** Both can be broken at once: they do not want different values in one field. `a` comes first. */
function together<Request>(a: Rule<Request>, b: Rule<Request>): boolean {
  if (a.without?.includes(b.rule)) return false;
  if (a.field !== b.field) return true;
  const values = [a.value, b.value].filter((value) => value !== undefined);
  return values.length < 2 && Number(values[0] ?? 1) !== 0;
}

/** The error's name, and its message without numbers. */
function complaint(call: () => void): string {
  try {
    call();
  } catch (error) {
    if (error instanceof LinuxError) return error.message.replaceAll(/\d+/g, 'N');
    throw error;
  }
  return 'OK';
}

function checkOrder<Request extends object>(
  rules: readonly Rule<Request>[],
  setup: () => { request: Request; call: (request: Request) => void },
): void {
  it('a good request succeeds', () => {
    const { request, call } = setup();
    expect(complaint(() => call(request))).toBe('OK');
  });

  it.each(rules.map((rule) => [rule.rule, rule] as const))('%s', (_, rule) => {
    const { request, call } = setup();
    const alone = complaint(() => call(broken(request, [rule])));
    expect(alone.split(':')[0]).toBe(rule.errno);
    for (const later of rules.slice(rules.indexOf(rule) + 1)) {
      if (!together(rule, later)) continue;
      const both = complaint(() => call(broken(request, [rule, later])));
      expect([later.rule, both]).toEqual([later.rule, alone]);
    }
  });
}

type RegionRule = Rule<UserMemoryRegion2>;
const BEFORE_THE_SLOT: RegionRule[] = [
  { rule: '3: id', errno: 'EINVAL', field: 'slot', bits: 32764 },
  { rule: '4: flags', errno: 'EINVAL', field: 'flags', bits: 8 },
  { rule: '5: size', errno: 'EINVAL', field: 'memorySize', bits: 1n },
  { rule: '5: guest address', errno: 'EINVAL', field: 'guestPhysAddr', bits: 0x800n },
  { rule: '6: user address', errno: 'EINVAL', field: 'userspaceAddr', bits: 8n },
];
const ADDRESS_SPACE: RegionRule[] = [
  { rule: '8: address space', errno: 'EINVAL', field: 'slot', bits: 0x2_0000 },
  {
    rule: '9: wrap-around',
    errno: 'EINVAL',
    field: 'guestPhysAddr',
    value: 0xffff_ffff_ffff_0000n,
    without: ['11: nothing to delete'],
  },
  { rule: '10: too many pages', errno: 'EINVAL', field: 'memorySize', value: 1n << 43n },
];

describe.each(BOTH_KERNELS)('KVM_SET_USER_MEMORY_REGION2 of a new slot with a file, on %s', (kernel) => {
  checkOrder<UserMemoryRegion2>(
    [
      ...BEFORE_THE_SLOT,
      { rule: '7: offset', errno: 'EINVAL', field: 'guestMemfdOffset', bits: 0x800n },
      ...ADDRESS_SPACE,
      { rule: '11: nothing to delete', errno: 'EINVAL', field: 'memorySize', value: 0n },
      { rule: '16: overlap', errno: 'EEXIST', field: 'guestPhysAddr', value: 0x40_0000n },
      { rule: '18: no descriptor', errno: 'EBADF', field: 'guestMemfd', value: 999 },
      { rule: '19: no guest_memfd', errno: 'EINVAL', field: 'guestMemfd', value: 3 },
      { rule: '20: beyond the file', errno: 'EINVAL', field: 'guestMemfdOffset', value: 0x1_1000n },
      {
        rule: '21: bound already',
        errno: kernel === '6.12' ? 'EINVAL' : 'EEXIST',
        field: 'guestMemfdOffset',
        value: 0n,
      },
      { rule: '22: beyond 48 bits', errno: 'EINVAL', field: 'guestPhysAddr', value: 1n << 48n },
    ],
    () => {
      const host = startVm({ kernel });
      const guestMemfd = host.createFile(0x2_0000n);
      const request = {
        slot: 0,
        flags: 4,
        guestPhysAddr: 0x20_0000n,
        memorySize: 0x1_0000n,
        userspaceAddr: 0x7000_0020_0000n,
        guestMemfdOffset: 0x1_0000n,
        guestMemfd,
      };
      host.setRegion({ ...request, slot: 5, guestPhysAddr: 0x40_0000n, guestMemfdOffset: 0n });
      return { request, call: (broken) => host.vm.setUserMemoryRegion2(broken) };
    },
  );
});

describe.each(BOTH_KERNELS)('KVM_SET_USER_MEMORY_REGION2 of a slot that exists, on %s', (kernel) => {
  checkOrder<UserMemoryRegion2>(
    [
      ...BEFORE_THE_SLOT,
      ...ADDRESS_SPACE,
      { rule: '13: a file', errno: 'EINVAL', field: 'flags', bits: 4, without: ['14: READONLY'] },
      { rule: '14: another user address', errno: 'EINVAL', field: 'userspaceAddr', value: 0x7000_0030_0000n },
      { rule: '14: another size', errno: 'EINVAL', field: 'memorySize', value: 0x2_0000n },
      { rule: '14: READONLY', errno: 'EINVAL', field: 'flags', bits: 2 },
      { rule: '16: overlap', errno: 'EEXIST', field: 'guestPhysAddr', value: 0x40_0000n },
      { rule: '22: beyond 48 bits', errno: 'EINVAL', field: 'guestPhysAddr', value: 1n << 48n },
    ],
    () => {
      const host = startVm({ kernel });
      const request = {
        slot: 0,
        flags: 0,
        guestPhysAddr: 0x20_0000n,
        memorySize: 0x1_0000n,
        userspaceAddr: 0x7000_0020_0000n,
        guestMemfdOffset: 0n,
        guestMemfd: 999,
      };
      host.setRegion(request);
      host.setRegion({ ...request, slot: 5, guestPhysAddr: 0x40_0000n });
      return { request, call: (broken) => host.vm.setUserMemoryRegion2(broken) };
    },
  );
});

describe('KVM_SET_MEMORY_ATTRIBUTES', () => {
  checkOrder(
    [
      { rule: 'flags', errno: 'EINVAL', field: 'flags', value: 1n },
      { rule: 'attributes', errno: 'EINVAL', field: 'attributes', bits: 4n },
      { rule: 'size 0', errno: 'EINVAL', field: 'size', value: 0n },
      { rule: 'wrap-around', errno: 'EINVAL', field: 'address', value: 0xffff_ffff_ffff_f000n },
      { rule: 'address', errno: 'EINVAL', field: 'address', bits: 0x800n },
      { rule: 'size', errno: 'EINVAL', field: 'size', bits: 0x800n },
    ],
    () => {
      const { vm } = startVm();
      const request = { address: 0x1000n, size: 0x1000n, attributes: 8n, flags: 0n };
      return { request, call: (broken) => vm.setMemoryAttributes(broken) };
    },
  );
});

describe('KVM_CREATE_GUEST_MEMFD', () => {
  checkOrder(
    [
      { rule: 'flags', errno: 'EINVAL', field: 'flags', bits: 4n },
      { rule: 'size 0', errno: 'EINVAL', field: 'size', value: 0n },
      { rule: 'negative size', errno: 'EINVAL', field: 'size', value: 1n << 63n },
      { rule: 'size', errno: 'EINVAL', field: 'size', bits: 0x800n },
    ],
    () => {
      const { vm } = startVm();
      const request = { size: 0x1000n, flags: 1n };
      return { request, call: (broken) => void vm.createGuestMemfd(broken) };
    },
  );
});

describe('KVM_CLEAR_DIRTY_LOG', () => {
  checkOrder(
    [
      { rule: 'address space', errno: 'EINVAL', field: 'slot', bits: 0x2_0000 },
      { rule: 'id', errno: 'EINVAL', field: 'slot', bits: 32764, without: ['no such slot'] },
      { rule: 'first_page inside 64', errno: 'EINVAL', field: 'firstPage', bits: 1n },
      { rule: 'no such slot', errno: 'ENOENT', field: 'slot', value: 7 },
      { rule: 'beyond the slot', errno: 'EINVAL', field: 'firstPage', value: 1n << 40n },
      { rule: 'pages inside 64', errno: 'EINVAL', field: 'numPages', value: 63 },
    ],
    () => {
      const host = startVm();
      host.setRegion({ flags: 1, memorySize: 0x8_0000n });
      const request = { slot: 0, firstPage: 0n, numPages: 64 };
      const call = (broken: typeof request): void =>
        host.vm.clearDirtyLog({ ...broken, bitmap: new Int32Array(4) });
      return { request, call };
    },
  );
});

describe('KVM_PRE_FAULT_MEMORY', () => {
  checkOrder(
    [
      { rule: 'flags', errno: 'EINVAL', field: 'flags', value: 1n },
      { rule: 'gpa inside a page', errno: 'EINVAL', field: 'gpa', bits: 0x800n },
      { rule: 'size 0', errno: 'EINVAL', field: 'size', value: 0n },
      { rule: 'no slot', errno: 'ENOENT', field: 'gpa', value: 0x80_0000n },
    ],
    () => {
      const host = startVm();
      const hva = host.process.memory.mmap({ length: 0x1_0000, protection: 3, flags: 0x22 });
      host.setRegion({ userspaceAddr: BigInt(hva) });
      const request = { gpa: 0x20_0000n, size: 0x1000n, flags: 0n };
      return { request, call: (broken) => void host.vcpu.preFaultMemory(broken) };
    },
  );
});

describe('fallocate of a guest_memfd', () => {
  interface Fallocate {
    fd: number;
    mode: number;
    offset: bigint;
    length: bigint;
  }
  checkOrder<Fallocate>(
    [
      { rule: 'no descriptor', errno: 'EBADF', field: 'fd', value: 999 },
      { rule: 'negative offset', errno: 'EINVAL', field: 'offset', value: -0x1000n },
      { rule: 'length 0', errno: 'EINVAL', field: 'length', value: 0n },
      { rule: 'a mode that the VFS does not know', errno: 'EOPNOTSUPP', field: 'mode', bits: 0x8000 },
      { rule: 'a mode that the file does not know', errno: 'EOPNOTSUPP', field: 'mode', bits: 0x10 },
      { rule: 'offset inside a page', errno: 'EINVAL', field: 'offset', bits: 1n },
      { rule: 'length not whole pages', errno: 'EINVAL', field: 'length', bits: 1n },
      { rule: 'beyond the file', errno: 'EINVAL', field: 'length', value: 1n << 52n },
      { rule: 'no memory', errno: 'ENOMEM', field: 'length', value: 1n << 40n },
    ],
    () => {
      const host = startVm({ bytes: 1 << 20 });
      const request = { fd: host.createFile(1n << 40n), mode: 1, offset: 0n, length: 0x1000n };
      const call = ({ fd, mode, offset, length }: Fallocate): void =>
        host.process.fallocate(fd, mode, offset, length);
      return { request, call };
    },
  );
});

describe('KVM_CREATE_VCPU', () => {
  it('looks at descriptor, id, existence, file table and memory in this order', () => {
    const full = (host: TestVm): void => {
      const fd = host.createFile(1n << 40n);
      expect(failure(() => host.process.fallocate(fd, 1, 0n, 1n << 40n))).toBe('ENOMEM');
    };
    const host = startVm({ fileLimit: 7 });
    host.vm.createVcpu(0);
    full(host);
    const results = [4096, 0, 1].map((id) => failure(() => host.vm.createVcpu(id)));
    host.kvm.close();
    results.push(failure(() => host.vm.createVcpu(1)));
    host.vm.close();
    results.push(failure(() => host.vm.createVcpu(4096)));
    expect(results).toEqual(['EINVAL', 'EEXIST', 'EMFILE', 'ENOMEM', 'EBADF']);
  });
});
