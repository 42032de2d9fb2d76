import { expect, it } from 'vitest';
import { ResetControl } from '../../../src/vmm/devices/reset-control.ts';

it.each<[number, number, boolean]>([
  [0x00, 0x00, false],
  [0x02, 0x02, false],
  [0x08, 0x08, false],
  [0xfb, 0x0a, false],
  [0x04, 0x00, true],
  [0x06, 0x00, true],
  [0x0e, 0x00, true],
])(
  'the reset control register, written %i, reads %i and asks for a reset: %s',
  (written, read, requested) => {
    const device = new ResetControl();
    device.write(0, written);
    expect([device.read(), device.requested]).toEqual([read, requested]);
  },
);
