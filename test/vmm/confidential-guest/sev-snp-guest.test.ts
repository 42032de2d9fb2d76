/** sev-snp-guest: its properties (QEMU's qapi/qom.json), each at the edge of what it takes, and what becomes of errors of a launch. */
import { describe, expect, it } from 'vitest';
import { LinuxError } from '../../../src/base/errors.ts';
import type { SevCommand } from '../../../src/kernel/interface.ts';
import {
  SevSnpGuest,
  type SevSnpGuestProperties,
} from '../../../src/vmm/confidential-guest/sev-snp-guest.ts';

const base64 = (bytes: number): string => btoa('\0'.repeat(bytes));
const toBase64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');

describe('sev-snp-guest', () => {
  const rows: [string, Record<string, unknown>, string | undefined][] = [
    ['nothing', {}, undefined],
    ['another device', { 'sev-device': '/dev/sev1' }, 'sev-device: got /dev/sev1, want /dev/sev'],
    ['policy 0', { policy: 0n }, undefined],
    ['policy −1', { policy: -1n }, 'policy: got -1, want a 64-bit number'],
    ['the largest policy', { policy: 0xffff_ffff_ffff_ffffn }, undefined],
    ['a larger one', { policy: 1n << 64n }, 'policy: got 18446744073709551616, want a 64-bit number'],
    ['no reduced bit', { 'reduced-phys-bits': 0 }, 'reduced-phys-bits: got 0, want 1 to 63'],
    ['1 reduced bit', { 'reduced-phys-bits': 1 }, undefined],
    ['63 reduced bits', { 'reduced-phys-bits': 63 }, undefined],
    ['64 reduced bits', { 'reduced-phys-bits': 64 }, 'reduced-phys-bits: got 64, want 1 to 63'],
    ['half a reduced bit', { 'reduced-phys-bits': 1.5 }, 'reduced-phys-bits: got 1.5, want 1 to 63'],
    ['no number of bits', { 'reduced-phys-bits': Number.NaN }, 'reduced-phys-bits: got NaN, want 1 to 63'],
    ['an object without text', { policy: Object.create(null) }, 'policy: got an object, want a bigint'],
    ['host data of 32 bytes', { 'host-data': base64(32) }, undefined],
    ['host data of 31 bytes', { 'host-data': base64(31) }, 'host-data: got 31 bytes, want exactly 32'],
    ['what is no base64', { 'host-data': '????' }, 'host-data: got "????", want base64'],
    ['base64 cut short', { 'host-data': 'AAA' }, 'host-data: got "AAA", want base64'],
    [
      'an ID block without its authentication',
      { 'id-block': base64(96) },
      'id-auth: got none, want one with id-block',
    ],
    ['an ID block with it', { 'id-block': base64(96), 'id-auth': base64(4096) }, undefined],
    ['authentication of a page', { 'id-auth': base64(4096) }, undefined],
    ['authentication of less, which zeros follow', { 'id-auth': base64(4095) }, undefined],
    ['authentication of more', { 'id-auth': base64(4097) }, 'id-auth: got 4097 bytes, want at most 4096'],
    ['what is no property', { polixy: 1n }, "Property 'sev-snp-guest.polixy' not found"],
    ['a policy that is no bigint', { policy: 5 }, 'policy: got 5, want a bigint'],
    ['a yes that is text', { 'vcek-disabled': 'on' }, 'vcek-disabled: got on, want a boolean'],
    ['a property that is left undefined', { policy: undefined }, undefined],
  ];
  it.each(rows)('%s', (_, properties, message) => {
    const make = () => new SevSnpGuest(properties as SevSnpGuestProperties);
    if (message === undefined) expect(make).not.toThrow();
    else expect(make).toThrow(message);
  });

  it('wants the C-bit where the host has it', () => {
    const init = (cbitpos?: number) => () =>
      new SevSnpGuest(cbitpos === undefined ? {} : { cbitpos }).kvmInit(
        { openSev: () => expect.fail('opened') } as never,
        {} as never,
        {
          cBit: 51,
          certificates: false,
        },
      );
    expect(init(47)).toThrow('cbitpos: got 47, want 51, as the host has it');
    expect(init(51)).toThrow('opened');
    expect(init()).toThrow('opened');
  });
});

describe('a launch', () => {
  const CPUID_PAGE = 6;
  const fails = (code: 'EINVAL' | 'EIO' | 'EAGAIN', firmware = 0) => ({
    error: new LinuxError(code, 'no'),
    firmware,
  });

  /** A guest with a queued page of `type`, on a KVM whose `failing` command (by id) fails so often, and which counts its calls. */
  function start(
    failing: number,
    failure: { error: Error; firmware: number },
    { times = Number.POSITIVE_INFINITY, type = 1, attributes = 0, properties = {} } = {},
  ) {
    const guest = new SevSnpGuest(properties);
    let calls = 0;
    const commands: SevCommand[] = [];
    const vm = {
      memoryEncryptOp: (command: SevCommand) => {
        commands.push(command);
        if (command.id === failing && calls++ < times) {
          if (failure.firmware !== 0) command.error = failure.firmware;
          throw failure.error;
        }
        if (command.id === 101) command.data.len = 0n;
      },
    };
    const process = { openSev: () => 3, memory: { read: () => {} } };
    const kvm = { vm, setMemoryAttributesPrivate: () => attributes };
    guest.addPages(0x1000, 0 as never, 0x1000, type);
    return {
      init: () => guest.kvmInit(process as never, kvm as never, { cBit: 51, certificates: false }),
      finish: () => guest.finishLaunch(process as never, kvm as never),
      calls: () => calls,
      commands,
    };
  }

  it('tries an update again while firmware is busy, a thousand times', () => {
    const busy = start(101, fails('EAGAIN'), { times: 1000 });
    expect(busy.finish()).toBe(1);
    const stuck = start(101, fails('EAGAIN'), { times: 1001 });
    expect(stuck.finish).toThrow('SNP_LAUNCH_UPDATE of 0x1000 bytes at 0x1000: EAGAIN: no');
    expect(stuck.calls()).toBe(1001);
  });

  it('ends where a range cannot be made private', () => {
    const { finish } = start(0, fails('EIO'), { attributes: -22 });
    expect(finish).toThrow('SNP_LAUNCH_UPDATE of 0x1000 bytes at 0x1000: the range cannot be made private');
  });

  it.each([
    ['a CPUID page that firmware corrected', CPUID_PAGE, 0x16, 'firmware refused the CPUID page'],
    ['a CPUID page, for another reason', CPUID_PAGE, 0x10, 'EIO: no, firmware error 16'],
    ['another page', 1, 0x16, 'EIO: no, firmware error 22'],
  ])('names what is wrong with %s', (_, type, firmware, message) => {
    expect(start(101, fails('EIO', firmware), { type }).finish).toThrow(message);
  });

  it('blames the ID block for a measurement alone, and only where there is one', () => {
    const properties = { 'id-block': base64(96), 'id-auth': base64(4096) };
    const wrong = { property: 'id-block' };
    expect(start(102, fails('EIO', 0x0b), { properties }).finish).toThrow(expect.objectContaining(wrong));
    const others = [start(102, fails('EIO', 0x0b)), start(102, fails('EIO', 0x10), { properties })];
    for (const { finish } of others) {
      expect(finish).toThrow('sev-snp-guest: SNP_LAUNCH_FINISH: EIO: no');
      expect(finish).toThrow(expect.not.objectContaining(wrong));
    }
  });

  it.each([
    ['EINVAL', 0, 'policy'],
    ['EIO', 0x07, 'policy'],
    ['EIO', 0x10, undefined],
  ] as const)(
    'that does not begin, for %s and firmware error %i, is blamed on %s',
    (code, firmware, property) => {
      const { init } = start(100, fails(code, firmware));
      expect(init).toThrow(expect.objectContaining({ name: 'VmmError', property }));
    },
  );

  it('is finished with the ID block, where there is one', () => {
    const block = Uint8Array.from({ length: 96 }, (_, at) => at);
    const auth = Uint8Array.of(1, 2, 3);
    const properties = { 'id-block': toBase64(block), 'id-auth': toBase64(auth), 'author-key-enabled': true };
    const finishOf = (given: SevSnpGuestProperties) => {
      const { finish, commands } = start(0, fails('EIO'), { properties: given });
      finish();
      return commands.find(({ id }) => id === 102);
    };
    const plain = { vcekDisabled: false, hostData: new Uint8Array(32), flags: 0 };
    expect(finishOf({})).toEqual({ id: 102, sevFd: -1, data: plain });
    const page = new Uint8Array(4096);
    page.set(auth);
    expect(finishOf(properties)).toEqual({
      id: 102,
      sevFd: -1,
      data: { ...plain, id: { block, auth: page, authorKeyEnabled: true } },
    });
  });

  it.each([22, 101, 102])('lets through what is no error of KVM, from command %i', (id) => {
    const { init, finish } = start(id, { error: new TypeError('a bug'), firmware: 0 });
    expect(id === 22 ? init : finish).toThrow(TypeError);
  });

  it.each([
    ['a kernel that does not know certificates', new LinuxError('ENXIO', 'no'), undefined],
    ['a kernel that fails', new LinuxError('EFAULT', 'no'), 'EFAULT: no'],
    ['what is no error of KVM', Object.assign(new Error('a bug'), { code: 'ENXIO' }), 'a bug'],
  ])('asked to offer certificates, by %s', (_, error, message) => {
    const ids: number[] = [];
    const kvm = {
      vm: { memoryEncryptOp: ({ id }: SevCommand) => ids.push(id) },
      kvm: {
        getDeviceAttr: () => {
          throw error;
        },
      },
    };
    const init = () =>
      new SevSnpGuest().kvmInit({ openSev: () => 3 } as never, kvm as never, {
        cBit: 51,
        certificates: true,
      });
    if (message !== undefined) expect(init).toThrow(message);
    else init();
    expect(ids).toEqual(message === undefined ? [22, 100] : [22]);
  });
});
