/**
 * Devices of a PC (QEMU hw/i386/pc.c, hw/isa/lpc_ich9.c, hw/pci-host/q35.c) that this machine has not, by the ports at which a guest looked for them. A PC's guest that
 * finds none of them goes wrong later and elsewhere; so they are named where a run ends.
 */
import type { RunEnd } from './run-end.ts';

interface PortDevice {
  readonly name: string;
  readonly first: number;
  readonly last: number;
}

const PC_DEVICES: readonly PortDevice[] = [
  { name: 'interrupt controller (8259)', first: 0x20, last: 0x21 },
  { name: 'interval timer (8254)', first: 0x40, last: 0x43 },
  { name: 'keyboard controller (8042)', first: 0x60, last: 0x60 },
  { name: 'keyboard controller (8042)', first: 0x64, last: 0x64 },
  { name: 'CMOS and clock', first: 0x70, last: 0x71 },
  { name: 'interrupt controller (8259)', first: 0xa0, last: 0xa1 },
  { name: 'fw_cfg', first: 0x510, last: 0x51b },
  { name: 'PCI host bridge', first: 0xcf8, last: 0xcff },
];

export class MissingDevices {
  readonly #looked = new Set<string>();

  /** A guest's access to a port at which nothing is. */
  note(port: number): void {
    const device = PC_DEVICES.find(({ first, last }) => port >= first && port <= last);
    if (device !== undefined) this.#looked.add(device.name);
  }

  /** The end of a run as it is told: of one that the guest did not want, with what it looked for. */
  explain(end: RunEnd): RunEnd {
    const isWanted = end.reason === 'debug-exit' || end.reason === 'hlt';
    if (isWanted || this.#looked.size === 0) return end;
    const names = [...this.#looked].sort().join(', ');
    return {
      ...end,
      message: `${end.message ?? end.reason}; the guest looked for what this machine does not have: ${names}`,
    };
  }
}
