# A guest of 512 bytes that proves what became of it. Sector 1 of its own disk
# holds two words: how often this disk was booted, to which each boot adds 1, and
# whether it is stubborn. One that is not obeys the ACPI power button.
#
# as --32 guest.asm -o guest.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary guest.o -o guest.bin
.code16
.globl _start
.set sector, 0x7e00              # where sector 1 is read to
.set boots, sector
.set stubborn, sector+2
.set pm_status, 0x600            # machine 'pc': the firmware puts the PIIX4's power management there
.set pm_enable, 0x602
.set pm_control, 0x604
_start:
  cli
  xor %ax,%ax
  mov %ax,%ds
  mov %ax,%es
  mov %ax,%ss
  mov $0x7c00,%sp
  sti
  mov %dl,drive
  mov $0x0201,%ax                # read one sector
  call disk
  incw boots
  mov $0x0301,%ax                # write it
  call disk
  mov $pm_enable,%dx
  mov $0x100,%ax                 # the power button sets its bit in the status
  out %ax,%dx
wait:
  hlt                            # until the next tick of the clock
  cmpw $0,stubborn
  jne wait
  mov $pm_status,%dx
  in %dx,%ax
  test $1,%ah
  jz wait
  mov $pm_control,%dx
  mov $0x2000,%ax                # soft off
  out %ax,%dx
dead:
  hlt
  jmp dead
disk:                            # ax: what to do with sector 1
  mov $sector,%bx
  mov $2,%cx
  mov $0,%dh
  mov drive,%dl
  int $0x13
  jc dead
  ret
drive: .byte 0
.org 510
.word 0xaa55
