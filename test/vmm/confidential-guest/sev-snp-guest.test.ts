/** The properties of sev-snp-guest (QEMU's qapi/qom.json), each at the edge of what it takes. */
import { describe, expect, it } from 'vitest';
import {
  SevSnpGuest,
  type SevSnpGuestProperties,
} from '../../../src/vmm/confidential-guest/sev-snp-guest.ts';

const base64 = (bytes: number): string => btoa('\0'.repeat(bytes));

describe('sev-snp-guest', () => {
  const rows: [string, SevSnpGuestProperties, string | undefined][] = [
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
    ['authentication of more', { 'id-auth': base64(4097) }, 'id-auth: got 4097 bytes, want at most 4096'],
  ];
  it.each(rows)('%s', (_, properties, message) => {
    const make = () => new SevSnpGuest(properties);
    if (message === undefined) expect(make).not.toThrow();
    else expect(make).toThrow(message);
  });

  it('wants the C-bit where the host has it', () => {
    const init = (cbitpos: number) => () =>
      new SevSnpGuest({ cbitpos }).kvmInit({ openSev: () => expect.fail('opened') } as never, {} as never, {
        cBit: 51,
        certificates: false,
      });
    expect(init(47)).toThrow('cbitpos: got 47, want 51, as the host has it');
    expect(init(51)).toThrow('opened');
  });
});
